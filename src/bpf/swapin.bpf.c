// SPDX-License-Identifier: GPL-2.0-only
/*
 * swapin: pages that come back from swap, by the process that had them read, how
 * long it waited for them, and pages written out, by the process that wrote them.
 */
#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "compat.bpf.h"
#include "fault.bpf.h"

char LICENSE[] SEC("license") = "GPL";

/* What a thread is in. */
enum call {
	CALL_NONE,
	CALL_READ,   /* swap_read_folio(), swap_readpage() */
	CALL_SUBMIT, /* swap_read_submit(), of what was read before */
	CALL_LOCK,   /* waits until a page that is being read is there */
	CALL_STORE,  /* zswap_store() */
};

struct flight {
	__u32 call;
	__u32 pages;
	__u64 page; /* address */
	__u64 start_ns;
	__u32 from_ram; /* the device is memory */
	__u32 zero;	/* known to be all zeroes: nothing is read */
	__u32 zswap;	/* found there */
	__u32 device;	/* handed to the device */
};

#include "flight.bpf.h"

/* Pages and time of one process. */
struct swap_count {
	__u64 faults;	/* that had to read */
	__u64 in;	/* pages read from swap areas: pswpin */
	__u64 in_ram;	/* of those, from a device that is memory */
	__u64 in_zswap; /* zswpin */
	__u64 in_zero;	/* swpin_zero */
	__u64 wait_ns;
	__u64 out;     /* pages written to swap areas: pswpout */
	__u64 out_ram; /* of those, to a device that is memory */
	__u64 out_zswap;
	__u8 comm[16];
};
_Static_assert(sizeof(struct swap_count) == 88, "value layout");

/* Keeps the type in BTF, from which the Rust side is generated. */
const struct swap_count *swap_count_type __attribute__((unused));

const volatile __u64 swap_info_addr; /* of the kernel's array; 0: not known */
const volatile __u64 huge_pages;     /* in a huge page */
const volatile bool load_says_true;  /* zswap_load() returns a bool */
const volatile bool sees_device;     /* swap_add_folio() is hooked */

/* By faulter_id(). Nothing is evicted. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 32768); /* --max-entries changes it before load */
	__type(key, __u64);
	__type(value, struct swap_count);
} counts SEC(".maps");

static __always_inline struct swap_count *count_here(void)
{
	struct swap_count *c;
	struct faulter f;
	__u64 key;

	if (!faulter_find(&f))
		return NULL;
	key = faulter_id(&f);
	c = bpf_map_lookup_elem(&counts, &key);
	if (!c) {
		struct task_struct *leader = f.leader;
		struct swap_count fresh = {};

		bpf_core_read(fresh.comm, sizeof(fresh.comm), &leader->comm);
		/* Another CPU may be first: what counts is what is there then. */
		bpf_map_update_elem(&counts, &key, &fresh, BPF_NOEXIST);
		c = bpf_map_lookup_elem(&counts, &key);
		if (!c)
			count_lost();
	}
	return c;
}

/* include/linux/swapops.h: 5 bits of type above the offset; macros, so not in BTF. */
#define SWP_TYPE_SHIFT 58
/* SWP_SYNCHRONOUS_IO, include/linux/swap.h; its enumeration has no name. */
#define SYNCHRONOUS_IO 0x1000

static __always_inline struct swap_info_struct *area_of(__u64 entry)
{
	struct swap_info_struct *area = NULL;

	if (swap_info_addr)
		bpf_probe_read_kernel(
			&area, sizeof(area),
			(void *)(swap_info_addr + (entry >> SWP_TYPE_SHIFT) * sizeof(area)));
	return area;
}

static __always_inline __u32 area_is_ram(struct swap_info_struct *area)
{
	return area && BPF_CORE_READ(area, flags) & SYNCHRONOUS_IO;
}

static __always_inline int read_begin(struct page *page)
{
	__u64 entry = BPF_CORE_READ(page, private);
	struct swap_info_struct *area;
	struct faulter who;
	struct flight *f;

	if (!faulter_find(&who))
		return 0;
	f = flight_begin(CALL_READ);
	if (!f)
		return 0;
	area = area_of(entry);
	f->page = (__u64)page;
	f->pages = pages_of_folio(page, huge_pages);
	f->from_ram = area_is_ram(area);
	f->zero = area && swap_page_is_zero(area, entry & ((1ULL << SWP_TYPE_SHIFT) - 1));
	f->zswap = 0;
	f->device = 0;
	f->start_ns = bpf_ktime_get_ns();
	return 0;
}

static __always_inline int read_end(void)
{
	struct flight *f = flight_of(CALL_READ);
	struct swap_count *c;

	if (!f)
		return 0;
	c = count_here();
	if (c) {
		__sync_fetch_and_add(&c->wait_ns, bpf_ktime_get_ns() - f->start_ns);
		if (f->zswap) {
			__sync_fetch_and_add(&c->in_zswap, f->pages);
		} else if (sees_device ? !f->device : f->zero) {
			__sync_fetch_and_add(&c->in_zero, f->pages);
		} else {
			__sync_fetch_and_add(&c->in, f->pages);
			if (f->from_ram)
				__sync_fetch_and_add(&c->in_ram, f->pages);
		}
	}
	flight_end(f);
	return 0;
}

/* Waiting for something that was begun before, unless it is a part of a read. */
static __always_inline int wait_begin(__u32 call)
{
	struct faulter who;
	struct flight *f;

	if (flight_here() || !faulter_find(&who))
		return 0;
	f = flight_begin(call);
	if (f)
		f->start_ns = bpf_ktime_get_ns();
	return 0;
}

static __always_inline int wait_end(__u32 call)
{
	struct flight *f = flight_of(call);
	struct swap_count *c;

	if (!f)
		return 0;
	c = count_here();
	if (c)
		__sync_fetch_and_add(&c->wait_ns, bpf_ktime_get_ns() - f->start_ns);
	flight_end(f);
	return 0;
}

static __always_inline int loaded(bool found)
{
	struct flight *f = flight_of(CALL_READ);

	if (f && found)
		f->zswap = 1;
	return 0;
}

/* zswap_load() says whether it found the page: a bool, or since 6.16 0. */
static __always_inline bool load_found(__u64 ret)
{
	return load_says_true ? ret & 1 : (__u32)ret == 0;
}

static __always_inline int handed_over(struct page *page)
{
	struct flight *f = flight_of(CALL_READ);

	if (f && f->page == (__u64)page)
		f->device = 1;
	return 0;
}

static __always_inline int written(struct page *page)
{
	__u64 pages = pages_of_folio(page, huge_pages);
	struct swap_count *c = count_here();

	if (!c)
		return 0;
	__sync_fetch_and_add(&c->out, pages);
	if (area_is_ram(area_of(BPF_CORE_READ(page, private))))
		__sync_fetch_and_add(&c->out_ram, pages);
	return 0;
}

static __always_inline int stored(struct page *page, bool done)
{
	struct swap_count *c;

	if (!done)
		return 0;
	c = count_here();
	if (c)
		__sync_fetch_and_add(&c->out_zswap, pages_of_folio(page, huge_pages));
	return 0;
}

static __always_inline int faulted(__u32 ret)
{
	struct swap_count *c;

	if (!(ret & VM_FAULT_MAJOR))
		return 0;
	c = count_here();
	if (c)
		__sync_fetch_and_add(&c->faults, 1);
	return 0;
}

/* --- the names of the functions are this kernel's, set before load --- */

/*
 * Of a kprobe: both are read before one is chosen, as the verifier wants fixed places.
 * An fentry program must not read the other one, where it is no pointer to a structure.
 */
static __always_inline struct page *page_argument(void *first, void *second)
{
	barrier_var(first);
	barrier_var(second);
	return swap_io_has_context() ? second : first;
}

SEC("fentry/swap_read_folio")
int read_enter(__u64 *ctx)
{
	return read_begin((void *)(swap_io_has_context() ? ctx[1] : ctx[0]));
}

SEC("fexit/swap_read_folio")
int read_leave(__u64 *ctx)
{
	return read_end();
}

SEC("fentry/__swap_writepage")
int write_enter(__u64 *ctx)
{
	return written((void *)(swap_io_has_context() ? ctx[1] : ctx[0]));
}

SEC("fexit/do_swap_page")
int BPF_PROG(fault_leave, struct vm_fault *vmf, vm_fault_t ret)
{
	return faulted(ret);
}

SEC("fentry/__folio_lock_or_retry")
int lock_enter(__u64 *ctx)
{
	return wait_begin(CALL_LOCK);
}

SEC("fexit/__folio_lock_or_retry")
int lock_leave(__u64 *ctx)
{
	return wait_end(CALL_LOCK);
}

SEC("fentry/swap_read_submit")
int submit_enter(__u64 *ctx)
{
	return wait_begin(CALL_SUBMIT);
}

SEC("fexit/swap_read_submit")
int submit_leave(__u64 *ctx)
{
	return wait_end(CALL_SUBMIT);
}

SEC("fentry/swap_add_folio")
int BPF_PROG(device_enter, void *io, struct page *page)
{
	return handed_over(page);
}

SEC("fexit/zswap_load")
int BPF_PROG(load_leave, void *page, __u64 ret)
{
	return loaded(load_found(ret));
}

SEC("fexit/zswap_store")
int BPF_PROG(store_leave, struct page *page, __u64 ret)
{
	return stored(page, ret & 1);
}

SEC("kprobe/swap_read_folio")
int BPF_KPROBE(read_enter_k, void *first, void *second)
{
	return read_begin(page_argument(first, second));
}

SEC("kretprobe/swap_read_folio")
int BPF_KRETPROBE(read_leave_k)
{
	return read_end();
}

SEC("kprobe/__swap_writepage")
int BPF_KPROBE(write_enter_k, void *first, void *second)
{
	return written(page_argument(first, second));
}

SEC("kretprobe/do_swap_page")
int BPF_KRETPROBE(fault_leave_k, unsigned int ret)
{
	return faulted(ret);
}

SEC("kprobe/__folio_lock_or_retry")
int BPF_KPROBE(lock_enter_k)
{
	return wait_begin(CALL_LOCK);
}

SEC("kretprobe/__folio_lock_or_retry")
int BPF_KRETPROBE(lock_leave_k)
{
	return wait_end(CALL_LOCK);
}

SEC("kprobe/swap_read_submit")
int BPF_KPROBE(submit_enter_k)
{
	return wait_begin(CALL_SUBMIT);
}

SEC("kretprobe/swap_read_submit")
int BPF_KRETPROBE(submit_leave_k)
{
	return wait_end(CALL_SUBMIT);
}

SEC("kprobe/swap_add_folio")
int BPF_KPROBE(device_enter_k, void *io, struct page *page)
{
	return handed_over(page);
}

SEC("kretprobe/zswap_load")
int BPF_KRETPROBE(load_leave_k, __u64 ret)
{
	return loaded(load_found(ret));
}

/* The page is an argument of the store, which is not there any more at its end. */
SEC("kprobe/zswap_store")
int BPF_KPROBE(store_enter_k, struct page *page)
{
	struct faulter who;
	struct flight *f;

	if (flight_here() || !faulter_find(&who))
		return 0;
	f = flight_begin(CALL_STORE);
	if (f)
		f->page = (__u64)page;
	return 0;
}

SEC("kretprobe/zswap_store")
int BPF_KRETPROBE(store_leave_k, __u64 ret)
{
	struct flight *f = flight_of(CALL_STORE);

	if (!f)
		return 0;
	stored((void *)f->page, ret & 1);
	flight_end(f);
	return 0;
}

/*
 * Without functions: nothing else makes anonymous memory wait for a device. Only
 * the faults are seen.
 */
SEC("perf_event")
int on_major(struct bpf_perf_event_data *ctx)
{
	struct fault_place place = {.kind = FAULT_FILE};
	struct faulter who;

	fault_run();
	if (!faulter_find(&who))
		return 0;
	if (!fault_find(ctx->addr, &place)) {
		count_lost();
		return 0;
	}
	return place.kind == FAULT_ANON ? faulted(VM_FAULT_MAJOR) : 0;
}

SEC("raw_tp/sched_process_exit")
int on_exit(struct bpf_raw_tracepoint_args *ctx)
{
	flight_forget((void *)ctx->args[0]);
	return 0;
}
