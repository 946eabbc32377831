// SPDX-License-Identifier: GPL-2.0-only
// Orders about the operators of C++: every replaceable form of new and delete.
#include <cstddef>
#include <cstdint>
#include <new>

#include "target.h"

namespace
{

constexpr std::align_val_t ALIGNED{64};

// More than there is, and hidden from the compiler.
volatile std::size_t too_much = PTRDIFF_MAX;

} // namespace

// One function a form, as stacks must tell them apart.
#define LEAK(name, call)                                                                           \
	extern "C" NAMED void *leak_##name(std::size_t bytes)                                      \
	{                                                                                          \
		void *block = call;                                                                \
		KEEP_FRAME(block);                                                                 \
		return block;                                                                      \
	}

#define RELEASE(name, call)                                                                        \
	extern "C" NAMED void release_##name(void *block, std::size_t bytes)                       \
	{                                                                                          \
		(void)bytes;                                                                       \
		call;                                                                              \
	}

LEAK(new, ::operator new(bytes))
LEAK(new_array, ::operator new[](bytes))
LEAK(new_nothrow, ::operator new(bytes, std::nothrow))
LEAK(new_array_nothrow, ::operator new[](bytes, std::nothrow))
LEAK(new_aligned, ::operator new(bytes, ALIGNED))
LEAK(new_array_aligned, ::operator new[](bytes, ALIGNED))
LEAK(new_aligned_nothrow, ::operator new(bytes, ALIGNED, std::nothrow))
LEAK(new_array_aligned_nothrow, ::operator new[](bytes, ALIGNED, std::nothrow))

RELEASE(delete, ::operator delete(block))
RELEASE(delete_sized, ::operator delete(block, bytes))
RELEASE(delete_nothrow, ::operator delete(block, std::nothrow))
RELEASE(delete_aligned, ::operator delete(block, ALIGNED))
RELEASE(delete_sized_aligned, ::operator delete(block, bytes, ALIGNED))
RELEASE(delete_aligned_nothrow, ::operator delete(block, ALIGNED, std::nothrow))
RELEASE(delete_array, ::operator delete[](block))
RELEASE(delete_array_sized, ::operator delete[](block, bytes))
RELEASE(delete_array_nothrow, ::operator delete[](block, std::nothrow))
RELEASE(delete_array_aligned, ::operator delete[](block, ALIGNED))
RELEASE(delete_array_sized_aligned, ::operator delete[](block, bytes, ALIGNED))
RELEASE(delete_array_aligned_nothrow, ::operator delete[](block, ALIGNED, std::nothrow))

// Blocks of one form are freed by all the forms that may free them, in turn.
#define ORDER(name, a, b, c)                                                                       \
	static void order_##name(long n, long size, long)                                          \
	{                                                                                          \
		void (*const releases[])(void *, std::size_t) = {release_##a, release_##b,         \
								 release_##c};                     \
		for (long i = 0; i < n; i++)                                                       \
			keep(leak_##name(size), size, releases[i % 3]);                            \
	}

ORDER(new, delete, delete_sized, delete_nothrow)
ORDER(new_array, delete_array, delete_array_sized, delete_array_nothrow)
ORDER(new_nothrow, delete, delete_sized, delete_nothrow)
ORDER(new_array_nothrow, delete_array, delete_array_sized, delete_array_nothrow)
ORDER(new_aligned, delete_aligned, delete_sized_aligned, delete_aligned_nothrow)
ORDER(new_array_aligned, delete_array_aligned, delete_array_sized_aligned,
      delete_array_aligned_nothrow)
ORDER(new_aligned_nothrow, delete_aligned, delete_sized_aligned, delete_aligned_nothrow)
ORDER(new_array_aligned_nothrow, delete_array_aligned, delete_array_sized_aligned,
      delete_array_aligned_nothrow)

// The exception must find its way through the frames of a watched allocator. EXTRA: how often it
// did.
static void order_new_throws(long n, long, long)
{
	while (n--) {
		try {
			refused(leak_new(too_much));
		} catch (const std::bad_alloc &) {
			extra++;
		}
	}
}

static void order_new_fails(long n, long, long)
{
	while (n--) {
		refused(leak_new_nothrow(too_much));
		refused(leak_new_array_aligned_nothrow(too_much));
	}
}

extern "C" const struct order cxx_orders[] = {
	{"new", order_new},
	{"new-array", order_new_array},
	{"new-nothrow", order_new_nothrow},
	{"new-array-nothrow", order_new_array_nothrow},
	{"new-aligned", order_new_aligned},
	{"new-array-aligned", order_new_array_aligned},
	{"new-aligned-nothrow", order_new_aligned_nothrow},
	{"new-array-aligned-nothrow", order_new_array_aligned_nothrow},
	{"new-throws", order_new_throws},
	{"new-fails", order_new_fails},
	{nullptr, nullptr},
};
