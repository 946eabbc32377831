// SPDX-License-Identifier: GPL-2.0-only
/*
 * memleak: what a process allocates and has not freed.
 *
 * Heap blocks: probes on the functions of an allocator. The entry remembers
 * what was asked for and by which stack, in memory of the thread's own, so
 * threads cannot disturb each other; the return adds the block to the table. A
 * free is one delete. Which stack holds how much is found by reading the table
 * when a report is due, so there are no totals to keep right here.
 *
 * A call inside another belongs to the outer one. Whether it is inside is seen
 * by the stack pointer: the outer call's frame is still there. An outer call
 * whose return was never seen (a jump out of it) is noticed the same way.
 *
 * Mappings: system calls, sent as events in the kernel's order; the ledger of
 * ranges is kept by user space. A mapping made inside an allocator's function
 * is the allocator's own.
 */
#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/usdt.bpf.h>
#include "event.bpf.h"
#include "sample.bpf.h"
#include "stack.bpf.h"

char LICENSE[] SEC("license") = "GPL";

#define PAGE_EXEC 4	   /* PROT_EXEC, uapi/asm-generic/mman-common.h */
#define MAP_ANON 0x20	   /* MAP_ANONYMOUS */
#define COOKIE_LEAF 1	   /* the function calls no other probed one */
#define FRAME 16	   /* bytes of a frame: the next one, and a return address */
#define WINDOW 512	   /* bytes of a stack that are read at once: about ten small frames */
#define WINDOW_FRAMES 16   /* frames that are looked for in one */
#define WINDOWS 4	   /* of them; what lies further is read frame by frame */
#define PAGE 4096	   /* the smallest there is */
#define LOWEST PAGE	   /* nothing is ever mapped below */
#define NO_PROCESS (~0ULL) /* looked up: not one of ours */
/* How far above the stack pointer the one at the entry lies after a return. */
#ifdef __TARGET_ARCH_x86
#define RETURN_POPS 8
#else
#define RETURN_POPS 0
#endif

const volatile bool with_storage; /* the kernel has task storage (5.11) */
const volatile bool in_session;	  /* entry and return are one session probe */
const volatile bool with_stack;
const volatile bool follow;		      /* children too */
const volatile bool trace;		      /* each call is an event */
const volatile __u32 depth_max = STACK_DEPTH; /* frames to keep, at least 3 */
const volatile __u64 min_bytes;
const volatile __u64 max_bytes;
const volatile __u64 sample_bytes; /* mean distance of two samples; 0: all */

/* One of our processes. Numbered anew at exec, so nothing outlives its memory. */
struct process {
	__u64 id; /* tgid << 32 | generation */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32); /* tgid */
	__type(value, struct process);
} processes SEC(".maps");

/* A process has more than one allocator: a free of one may call another's. */
__u64 frees_nest = 0;

/* Incremented when `processes` changes: threads look again. */
__u64 epoch = 1;

struct block_key {
	__u64 address;
	__u64 process;
};

struct block {
	__u64 bytes;   /* as asked for */
	__u64 time_ns; /* CLOCK_MONOTONIC, when it was given */
	__u64 stack;   /* id; 0: lost */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1 << 20); /* --max-blocks changes it before load */
	__type(key, struct block_key);
	__type(value, struct block);
} blocks SEC(".maps");

/*
 * What a thread is doing. Only the thread itself ever touches it.
 *
 * It also holds what would be on the stack elsewhere. From 6.13 a program whose
 * stack is 64 bytes or more gets one for each CPU (e00931c02568 "bpf: Enable
 * private stack for eligible subprogs"), in the belief that such a program runs
 * once at a time on a CPU. A uprobe's may be preempted, and the next thread's
 * then overwrites it. So no program here comes near that; a test looks.
 */
struct thread {
	__u64 epoch;
	__u64 process; /* NO_PROCESS: not ours */
	/* the call in flight; 0: none */
	__u64 sp;
	__u64 bytes;
	__u64 out;	 /* where the address is stored; 0: it is returned */
	__u16 wanted;	 /* neither filtered out nor left out by sampling */
	__u16 may_throw; /* it may end without returning */
	__u32 pad;
	__u64 caller;
	/* the block in hand, here for want of a stack, see above */
	struct block_key key;
	struct block made;
	/* the block a resize is about */
	__u64 old_address;
	__u64 old_unknown; /* it is not in the table */
	struct block old;
	/* a call that was left out: its return is not seen */
	__u64 left_sp;
	__u64 left_caller;
	/* a function that passes its call on, around the one to come; sp 0: none */
	__u64 outer_sp;
	__u64 outer_ip;
	__u64 outer_fp;
	__u64 outer_caller;
	__u64 outer_bytes;
	__u64 outer_sized; /* it was asked for `outer_bytes` */
	/* the last free that found its block */
	__u64 freed;
	__u64 freed_sp;
	__u64 freed_caller;
	__u64 until_sample; /* bytes; 0: not drawn yet */
	/* the system call in flight */
	__u64 args[4];
	/* a part of the thread's own stack; what lies behind it is never used */
	__u64 window[(WINDOW + FRAME) / sizeof(__u64)];
	struct stack stack;
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct thread);
} threads SEC(".maps");

/* Before 5.11, and where the kernel cannot allocate task storage. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* set before load */
	__type(key, __u32);	/* tid */
	__type(value, struct thread);
} threads_by_tid SEC(".maps");

static const struct thread no_thread;

/* What went wrong, for good. */
struct {
	struct amount full;   /* blocks that found no place in the table */
	struct amount missed; /* blocks whose free was not seen: the address was given again */
	__u64 threads;	      /* calls of threads for which there was no memory */
	__u64 returns;	      /* calls whose return was not seen */
	__u64 stacks;	      /* blocks without a stack, because that table was full */
} trouble;

/* Frees of blocks that are not in the table, spread over CPUs. */
struct {
	__u64 count;
	__u64 pad[7];
} unknown[STACK_SLOTS];

/* What user space is told. */
enum event_kind {
	EVENT_FORK = 1, /* address: tgid of the child, other: its process */
	EVENT_EXEC,	/* other: the process it is from now on */
	EVENT_EXIT,
	EVENT_MAP, /* a new mapping */
	EVENT_UNMAP,
	EVENT_UNMAP_FAILED,
	EVENT_REMAP,	/* begins: other is the old address, size its length */
	EVENT_REMAPPED, /* ends: address and bytes of the new one */
	EVENT_REMAP_FAILED,
	EVENT_PROTECT,
	EVENT_BRK,
	EVENT_ALLOC, /* with --trace */
	EVENT_FREE,
};

#define FLAG_ALLOCATOR 1u /* inside an allocator's function */

struct memleak_event {
	__u64 time_ns;
	__u64 process;
	__u64 address;
	__u64 bytes;
	__u64 other;
	__u64 stack;
	__u32 kind;
	__u32 tid;
	__u32 prot;
	__u32 map_flags;
	__u32 flags;
	__u32 pad;
};
_Static_assert(sizeof(struct memleak_event) == 72, "event layout");

/* Keep the types in BTF, from which the Rust side is generated. */
const struct memleak_event *memleak_event_type __attribute__((unused));
const struct block *block_type __attribute__((unused));
const struct block_key *block_key_type __attribute__((unused));
const struct process *process_type __attribute__((unused));
const struct stack *stack_type __attribute__((unused));

/* --- who is asking --- */

static __always_inline struct thread *thread_here(void)
{
	struct thread *t;
	__u32 tid;

	if (with_storage)
		return bpf_task_storage_get(&threads, bpf_get_current_task_btf(), NULL,
					    BPF_LOCAL_STORAGE_GET_F_CREATE);
	tid = (__u32)bpf_get_current_pid_tgid();
	t = bpf_map_lookup_elem(&threads_by_tid, &tid);
	if (!t) {
		bpf_map_update_elem(&threads_by_tid, &tid, &no_thread, BPF_NOEXIST);
		t = bpf_map_lookup_elem(&threads_by_tid, &tid);
	}
	return t;
}

/* The thread, if its process is one of ours. */
static __always_inline struct thread *our_thread(void)
{
	struct thread *t = thread_here();
	struct process *p;
	__u32 tgid;
	__u64 id;

	if (!t) {
		__sync_fetch_and_add(&trouble.threads, 1);
		return NULL;
	}
	if (t->epoch != epoch) {
		tgid = bpf_get_current_pid_tgid() >> 32;
		p = bpf_map_lookup_elem(&processes, &tgid);
		t->epoch = epoch;
		id = p ? p->id : NO_PROCESS;
		if (t->process != id) {
			/* whatever was in flight was so in another program */
			t->sp = 0;
			t->outer_sp = 0;
			t->left_sp = 0;
			t->freed = 0;
			t->freed_sp = 0;
			t->process = id;
		}
	}
	return t->process == NO_PROCESS ? NULL : t;
}

/* The same where it may be no thread of ours at all: nothing is created then. */
static __always_inline struct thread *known_thread(void)
{
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;

	return bpf_map_lookup_elem(&processes, &tgid) ? our_thread() : NULL;
}

/* --- stacks --- */

static __always_inline void set_depth(struct thread *t, __u32 first, long bytes)
{
	stack_end(&t->stack, first + (bytes > 0 ? (__u32)bytes / 8 : 0));
	t->stack.owner = t->process;
}

/* What is at the top of the stack at a function's entry: where it returns to. */
static __always_inline __u64 caller_at(struct thread *t, __u64 sp)
{
	if (bpf_probe_read_user(t->window, sizeof(t->window[0]), (void *)sp))
		return 0;
	return t->window[0];
}

/* An address as it is without a signature (PAC; user space has 48 bits). */
static __always_inline __u64 plain_address(__u64 address)
{
#ifdef __TARGET_ARCH_x86
	return address;
#else
	return address & ((1ULL << 48) - 1);
#endif
}

/*
 * Takes the stack of a function at its entry, from its registers. No frame has
 * been made for it: what the frame pointer leads to is its caller's, so the
 * caller itself is where the function returns to.
 *
 * Not with bpf_get_stack(): that reads every frame by itself, must be called
 * twice where the kernel adds the caller (since 6.12, if the probed instruction
 * is `push %rbp`: cfa7f3d2c526 "perf,x86: avoid missing caller address in stack
 * traces captured in uprobe"), and ends with a page fault, because the outermost
 * frame leads to no other: a thread begins with 0 in the register, main() is
 * called with 1. All that took half of the time of a traced allocation.
 *
 * `link`: where it returns to, if that is not on the stack.
 */
static __noinline void take_stack(struct thread *t, __u64 ip, __u64 sp, __u64 fp, __u64 link)
{
	struct stack *s = &t->stack;
	__u64 base = sp, at;

	s->owner = t->process;
	s->ips[0] = ip;
	s->ips[1] = plain_address(link);
	s->depth = 2;
	/*
	 * Most frames are small: one read gets many. The depth comes from memory,
	 * so that the verifier cannot tell one way out of a loop from another.
	 */
	for (int i = 0; i < WINDOWS; i++) {
		__u64 from = i ? fp : sp;

		if (i && (fp < LOWEST || fp % sizeof(fp)))
			break; /* the end */
		/* not beyond the page: it may be the last */
		base = from;
		if (from % PAGE > PAGE - WINDOW)
			base = from - from % PAGE + PAGE - WINDOW;
		if (bpf_probe_read_user(t->window, WINDOW, (void *)base))
			break;
#ifdef __TARGET_ARCH_x86
		/* a read of its own would cost a tenth of a microsecond */
		if (!i)
			s->ips[1] = *(__u64 *)((void *)t->window + (sp - base) % WINDOW);
#endif
		for (int j = 0; j < WINDOW_FRAMES; j++) {
			__u32 depth = *(volatile __u32 *)&s->depth;

			at = fp - base;
			if (depth >= depth_max || at > WINDOW - FRAME)
				break;
			fp = *(__u64 *)((void *)t->window + at);
			s->ips[depth & STACK_DEPTH] =
				plain_address(*(__u64 *)((void *)t->window + at + sizeof(fp)));
			s->depth = depth + 1;
		}
	}
	/* the rest one by one */
	for (int i = 0; i < STACK_DEPTH; i++) {
		__u32 depth = *(volatile __u32 *)&s->depth;

		if (depth >= depth_max || fp < LOWEST || fp % sizeof(fp) ||
		    bpf_probe_read_user(t->window, FRAME, (void *)fp))
			break;
		fp = t->window[0];
		s->ips[depth & STACK_DEPTH] = plain_address(t->window[1]);
		s->depth = depth + 1;
	}
	stack_end(s, s->depth);
}

static __always_inline __u64 link_register(struct pt_regs *ctx)
{
#ifdef __TARGET_ARCH_x86
	return 0; /* it has none */
#else
	return PT_REGS_RET(ctx);
#endif
}

static __always_inline __u64 return_address(struct pt_regs *ctx, struct thread *t)
{
#ifdef __TARGET_ARCH_x86
	return caller_at(t, PT_REGS_SP(ctx));
#else
	return PT_REGS_RET(ctx);
#endif
}

/* Whether a function that passes its call on is still around this one. */
static __always_inline bool in_outer(struct thread *t, __u64 sp)
{
#ifdef __TARGET_ARCH_x86
	/* its frame is there as long as its return address is */
	return t->outer_sp && sp < t->outer_sp && caller_at(t, t->outer_sp) == t->outer_caller;
#else
	return t->outer_sp && sp < t->outer_sp;
#endif
}

static __always_inline __u64 stack_id(struct thread *t, __u64 bytes)
{
	__u64 id;

	if (!with_stack) {
		/* one stack a process, of no addresses */
		t->stack.depth = 0;
		t->stack.owner = t->process;
	}
	id = stack_count(&t->stack, bytes);
	if (!id)
		__sync_fetch_and_add(&trouble.stacks, 1);
	return id;
}

/* --- events --- */

static __always_inline void send(struct thread *t, __u32 kind, __u64 address, __u64 bytes,
				 __u64 other, __u64 stack, __u32 flags)
{
	struct memleak_event *e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);

	if (!e) {
		count_lost();
		return;
	}
	e->time_ns = bpf_ktime_get_ns();
	e->process = t->process;
	e->address = address;
	e->bytes = bytes;
	e->other = other;
	e->stack = stack;
	e->kind = kind;
	e->tid = (__u32)bpf_get_current_pid_tgid();
	e->prot = (__u32)t->args[2];
	e->map_flags = (__u32)t->args[3];
	e->flags = flags;
	e->pad = 0;
	/* New code must be searched at once: it may hold an allocator. */
	if (kind <= EVENT_EXIT ||
	    (kind == EVENT_MAP && e->prot & PAGE_EXEC && !(e->map_flags & MAP_ANON)))
		bpf_ringbuf_submit(e, MW_RB_FORCE_WAKEUP);
	else
		submit_lazily(e);
}

/* --- heap blocks --- */

static __always_inline struct block_key *block_at(struct thread *t, __u64 address)
{
	t->key.address = address;
	t->key.process = t->process;
	return &t->key;
}

static __always_inline void add_block(struct thread *t, __u64 address, const struct block *b)
{
	struct block_key *key = block_at(t, address);
	struct block *ghost;
	long err;

	err = bpf_map_update_elem(&blocks, key, b, BPF_NOEXIST);
	if (!err)
		return;
	ghost = bpf_map_lookup_elem(&blocks, key);
	if (ghost) {
		/* The address was given again, so its free was not seen. */
		__sync_fetch_and_add(&trouble.missed.bytes, ghost->bytes);
		__sync_fetch_and_add(&trouble.missed.blocks, 1);
		err = bpf_map_update_elem(&blocks, key, b, BPF_EXIST);
	}
	if (err) {
		__sync_fetch_and_add(&trouble.full.bytes, b->bytes);
		__sync_fetch_and_add(&trouble.full.blocks, 1);
	}
}

static __noinline bool sampled(struct thread *t, __u64 bytes)
{
	if (!sample_bytes)
		return true;
	if (!bytes)
		bytes = 1;
	if (!t->until_sample)
		t->until_sample = sample_interval(bpf_get_prandom_u32(), sample_bytes);
	if (bytes < t->until_sample) {
		t->until_sample -= bytes;
		return false;
	}
	t->until_sample = sample_interval(bpf_get_prandom_u32(), sample_bytes);
	return true;
}

/*
 * Whether a call of this stack pointer is inside the one in flight. One that an
 * exception ended is not: its return address is overwritten by the next call.
 */
static __always_inline bool in_flight(struct thread *t, __u64 sp)
{
	if (!t->sp || sp > t->sp)
		return false;
	return !t->may_throw || caller_at(t, t->sp) == t->caller;
}

/*
 * A call that is left out needs no look at its return, unless the function
 * calls another probed one: that must be known to be inside.
 */
static __always_inline bool leave_out(struct pt_regs *ctx, struct thread *t)
{
	if (!in_session || t->wanted || t->old_address ||
	    !(bpf_get_attach_cookie(ctx) & COOKIE_LEAF))
		return false;
	t->left_sp = t->sp;
	t->left_caller = return_address(ctx, t);
	t->sp = 0;
	return true;
}

/* Whether what happens now happens inside an allocator's function. */
static __always_inline bool in_allocator(struct thread *t)
{
	return t->sp || (t->left_sp && caller_at(t, t->left_sp) == t->left_caller);
}

/* What an allocator's function is asked for; 1: its return need not be seen. */
static __noinline int enter_ours(struct pt_regs *ctx, struct thread *t, __u64 bytes, __u64 old,
				 __u64 out)
{
	__u64 sp = PT_REGS_SP(ctx);
	bool outer;

	if (t->sp) {
		if (in_flight(t, sp))
			return in_session ? 1 : 0; /* part of that call */
		if (!t->may_throw)
			__sync_fetch_and_add(&trouble.returns, 1);
	}
	outer = in_outer(t, sp);
	/* an aligned operator new asks for more than it was asked for */
	if (outer && t->outer_sized)
		bytes = t->outer_bytes;
	t->left_sp = 0;
	t->sp = sp;
	t->may_throw = 0;
	t->bytes = bytes;
	t->out = out;
	t->wanted = bytes >= min_bytes && bytes <= max_bytes && sampled(t, bytes);
	t->old_address = 0;
	t->old_unknown = 0;
	if (old) {
		struct block *b = bpf_map_lookup_elem(&blocks, block_at(t, old));

		/*
		 * Taken out now: once it is freed inside the call, another
		 * thread may be given its address. Put back if the call fails.
		 */
		if (b) {
			t->old = *b;
			t->old_address = old;
			bpf_map_delete_elem(&blocks, &t->key);
		} else {
			t->old_unknown = old;
		}
	}
	if (leave_out(ctx, t)) {
		t->outer_sp = 0;
		return 1;
	}
	if (with_stack && t->wanted) {
		if (outer)
			take_stack(t, t->outer_ip, t->outer_sp, t->outer_fp, t->outer_caller);
		else
			take_stack(t, PT_REGS_IP(ctx), sp, PT_REGS_FP(ctx), link_register(ctx));
	}
	t->outer_sp = 0;
	return 0;
}

static __always_inline int enter(struct pt_regs *ctx, __u64 bytes, __u64 old, __u64 out)
{
	struct thread *t = our_thread();

	if (!t)
		return in_session ? 1 : 0;
	return enter_ours(ctx, t, bytes, old, out);
}

static __always_inline void count_unknown(void)
{
	__sync_fetch_and_add(&unknown[bpf_get_smp_processor_id() % STACK_SLOTS].count, 1);
}

/* A block was given. */
static __always_inline void made(struct thread *t, __u64 address, __u64 bytes, __u64 old)
{
	t->made.bytes = bytes;
	t->made.time_ns = bpf_ktime_get_ns();
	t->made.stack = stack_id(t, bytes);
	add_block(t, address, &t->made);
	if (trace)
		send(t, EVENT_ALLOC, address, bytes, old, t->made.stack, 0);
}

/* The block that was resized is no more. */
static __always_inline void old_freed(struct thread *t)
{
	if (t->old_unknown)
		count_unknown();
	if (trace && t->old_address)
		send(t, EVENT_FREE, t->old_address, t->old.bytes, 0, t->old.stack, 0);
}

/* A function of its own, because its variables and an entry's together are too many. */
static __noinline void leave(struct thread *t, __u64 address)
{
	t->sp = 0;
	if (t->out) {
		__u64 out = 0;

		if ((__u32)address || bpf_probe_read_user(&out, sizeof(out), (void *)t->out))
			return;
		address = out;
	}
	if (!address) {
		/* realloc(p, 0) frees and gives nothing; else a failure changed nothing */
		if (!t->bytes)
			old_freed(t);
		else if (t->old_address)
			add_block(t, t->old_address, &t->old);
		return;
	}
	old_freed(t);
	if (!t->wanted)
		return;
	made(t, address, t->bytes, t->old_address);
}

/* The return of the call in flight, not of one inside it. */
static __always_inline int on_return(struct pt_regs *ctx)
{
	struct thread *t = our_thread();

	if (t && t->sp && PT_REGS_SP(ctx) == t->sp + RETURN_POPS)
		leave(t, PT_REGS_RC(ctx));
	return 0;
}

/*
 * A session probe runs one program at the entry and at the return. At the entry
 * the instruction pointer is where the probe is; bpf_get_func_ip gives that
 * place at both.
 */
static __always_inline bool is_return(struct pt_regs *ctx)
{
	return in_session && PT_REGS_IP(ctx) != bpf_get_func_ip(ctx);
}

static __always_inline __u64 product(__u64 n, __u64 bytes)
{
	__u64 most;

	if (!((n | bytes) >> 32))
		return n * bytes;
	if (!n)
		return 0;
	most = ~0ULL / n;
	barrier_var(most); /* or clang makes it a multiplication of 128 bits */
	/* A product that does not fit fails, and its size is not used. */
	return bytes > most ? ~0ULL : n * bytes;
}

SEC("uprobe")
int on_size(struct pt_regs *ctx)
{
	if (is_return(ctx))
		return on_return(ctx);
	return enter(ctx, PT_REGS_PARM1(ctx), 0, 0);
}

SEC("uprobe")
int on_second_size(struct pt_regs *ctx)
{
	if (is_return(ctx))
		return on_return(ctx);
	return enter(ctx, PT_REGS_PARM2(ctx), 0, 0);
}

SEC("uprobe")
int on_product(struct pt_regs *ctx)
{
	if (is_return(ctx))
		return on_return(ctx);
	return enter(ctx, product(PT_REGS_PARM1(ctx), PT_REGS_PARM2(ctx)), 0, 0);
}

SEC("uprobe")
int on_out_pointer(struct pt_regs *ctx)
{
	if (is_return(ctx))
		return on_return(ctx);
	return enter(ctx, PT_REGS_PARM3(ctx), 0, PT_REGS_PARM1(ctx));
}

SEC("uprobe")
int on_resize(struct pt_regs *ctx)
{
	if (is_return(ctx))
		return on_return(ctx);
	return enter(ctx, PT_REGS_PARM2(ctx), PT_REGS_PARM1(ctx), 0);
}

SEC("uprobe")
int on_resize_array(struct pt_regs *ctx)
{
	if (is_return(ctx))
		return on_return(ctx);
	return enter(ctx, product(PT_REGS_PARM2(ctx), PT_REGS_PARM3(ctx)), PT_REGS_PARM1(ctx), 0);
}

/*
 * operator new of an allocator's own. An exception cannot pass a probe on the
 * return, so the instructions it returns by are probed instead.
 */
SEC("uprobe")
int on_throwing(struct pt_regs *ctx)
{
	struct thread *t = our_thread();

	/* 1 would take the probe away */
	if (enter(ctx, PT_REGS_PARM1(ctx), 0, 0) || !t)
		return 0;
	if (t->sp == PT_REGS_SP(ctx)) {
		t->may_throw = 1;
		t->caller = caller_at(t, t->sp);
	}
	return 0;
}

SEC("uprobe")
int on_ret(struct pt_regs *ctx)
{
	struct thread *t = our_thread();

	/* at this instruction the return address has not been popped yet */
	if (t && t->sp && t->may_throw && PT_REGS_SP(ctx) == t->sp)
		leave(t, PT_REGS_RC(ctx));
	return 0;
}

/* The return side where entry and return are two probes. */
SEC("uretprobe")
int on_given(struct pt_regs *ctx)
{
	return on_return(ctx);
}

/*
 * A function that passes its call on: its caller is of interest, which the
 * function it calls could not see without a frame between.
 */
static __always_inline void enter_outer(struct pt_regs *ctx, bool sized, __u64 bytes)
{
	struct thread *t = our_thread();
	__u64 sp = PT_REGS_SP(ctx);

	if (!t || in_flight(t, sp) || in_outer(t, sp))
		return;
	t->outer_sp = sp;
	t->outer_ip = PT_REGS_IP(ctx);
	t->outer_fp = PT_REGS_FP(ctx);
	t->outer_caller = return_address(ctx, t);
	t->outer_sized = sized;
	t->outer_bytes = bytes;
}

/* operator new, on top of malloc */
SEC("uprobe")
int on_new(struct pt_regs *ctx)
{
	enter_outer(ctx, true, PT_REGS_PARM1(ctx));
	return 0;
}

/* mmap and its like in the C library */
SEC("uprobe")
int on_outer(struct pt_regs *ctx)
{
	enter_outer(ctx, false, 0);
	return 0;
}

SEC("uprobe")
int on_release(struct pt_regs *ctx)
{
	struct thread *t = our_thread();
	__u64 address = PT_REGS_PARM1(ctx);
	long err;

	if (!t || !address)
		return 0;
	block_at(t, address);
	if (trace) {
		struct block *b = bpf_map_lookup_elem(&blocks, &t->key);

		if (b)
			t->made = *b;
	}
	err = bpf_map_delete_elem(&blocks, &t->key);
	if (!err) {
		t->freed = address;
		if (frees_nest) {
			t->freed_sp = PT_REGS_SP(ctx);
			t->freed_caller = caller_at(t, t->freed_sp);
		}
		if (trace)
			send(t, EVENT_FREE, address, t->made.bytes, 0, t->made.stack, 0);
		return 0;
	}
	/*
	 * operator delete that calls free is one free, and so is one of another
	 * address inside a free: of an allocator on top of another, whose block
	 * lies inside the other's. One inside realloc is part of that.
	 */
	if (t->freed == address || in_flight(t, PT_REGS_SP(ctx)) ||
	    (frees_nest && t->freed_sp && PT_REGS_SP(ctx) <= t->freed_sp &&
	     caller_at(t, t->freed_sp) == t->freed_caller))
		t->freed = 0;
	else
		count_unknown();
	return 0;
}

/*
 * An allocator that announces by itself what it gives: `otel_memory:alloc` and
 * `:free`. It samples as it likes; `weight` is how many bytes this block stands
 * for.
 */
SEC("usdt")
int BPF_USDT(on_told_alloc, void *address, __u64 bytes, __u64 weight)
{
	struct thread *t = our_thread();

	if (!t || !address)
		return 0;
	if (with_stack)
		set_depth(t, 0,
			  bpf_get_stack(ctx, t->stack.ips, depth_max * sizeof(t->stack.ips[0]),
					BPF_F_USER_STACK));
	made(t, (__u64)address, weight, 0);
	return 0;
}

SEC("usdt")
int BPF_USDT(on_told_free, void *address)
{
	struct thread *t = our_thread();

	if (!t || !address)
		return 0;
	if (bpf_map_delete_elem(&blocks, block_at(t, (__u64)address)))
		count_unknown();
	else if (trace)
		send(t, EVENT_FREE, (__u64)address, 0, 0, 0, 0);
	return 0;
}

/* --- mappings --- */

/*
 * A program that reads more arguments than its system call has is refused when
 * it is attached; and the verifier wants each at a constant offset.
 */
static __always_inline struct thread *enter_mapping(struct trace_event_raw_sys_enter *ctx,
						    int arguments)
{
	struct thread *t = known_thread();

	if (!t)
		return NULL;
	t->args[0] = ctx->args[0];
	t->args[1] = arguments > 1 ? ctx->args[1] : 0;
	t->args[2] = arguments > 2 ? ctx->args[2] : 0;
	t->args[3] = arguments > 3 ? ctx->args[3] : 0;
	return t;
}

/*
 * The stack of a mapping: what a probed wrapper of the C library has taken, or
 * else the walk from the system call, which begins in the wrapper.
 */
static __always_inline void mapping_stack(void *ctx, struct thread *t)
{
	long n;

	if (!with_stack || in_allocator(t))
		return; /* the allocator's own: nobody's leak */
	if (t->outer_sp) {
		take_stack(t, t->outer_ip, t->outer_sp, t->outer_fp, t->outer_caller);
		t->outer_sp = 0;
		return;
	}
	n = bpf_get_stack(ctx, t->stack.ips, depth_max * sizeof(t->stack.ips[0]), BPF_F_USER_STACK);
	set_depth(t, 0, n);
}

static __always_inline void mapped(struct thread *t, __u32 kind, __u64 address, __u64 bytes,
				   __u64 other)
{
	bool own = in_allocator(t);
	__u64 stack = 0;

	if (!own && with_stack)
		stack = stack_count(&t->stack, bytes);
	send(t, kind, address, bytes, other, stack, own ? FLAG_ALLOCATOR : 0);
}

static __always_inline bool failed(long ret)
{
	return (unsigned long)ret >= (unsigned long)-4095L;
}

SEC("tracepoint/syscalls/sys_enter_mmap")
int enter_mmap(struct trace_event_raw_sys_enter *ctx)
{
	struct thread *t = enter_mapping(ctx, 6);

	if (t)
		mapping_stack(ctx, t);
	return 0;
}

SEC("tracepoint/syscalls/sys_exit_mmap")
int exit_mmap(struct trace_event_raw_sys_exit *ctx)
{
	struct thread *t = known_thread();

	if (t && !failed(ctx->ret))
		mapped(t, EVENT_MAP, ctx->ret, t->args[1], 0);
	return 0;
}

/*
 * A range is given up when the call begins: before it ends, another thread may
 * have been given the same addresses. A failure is told afterwards.
 */
SEC("tracepoint/syscalls/sys_enter_munmap")
int enter_munmap(struct trace_event_raw_sys_enter *ctx)
{
	struct thread *t = enter_mapping(ctx, 2);

	if (t)
		send(t, EVENT_UNMAP, t->args[0], t->args[1], 0, 0, 0);
	return 0;
}

SEC("tracepoint/syscalls/sys_exit_munmap")
int exit_munmap(struct trace_event_raw_sys_exit *ctx)
{
	struct thread *t = known_thread();

	if (t && ctx->ret)
		send(t, EVENT_UNMAP_FAILED, t->args[0], t->args[1], 0, 0, 0);
	return 0;
}

SEC("tracepoint/syscalls/sys_enter_mremap")
int enter_mremap(struct trace_event_raw_sys_enter *ctx)
{
	struct thread *t = enter_mapping(ctx, 5);

	if (!t)
		return 0;
	mapping_stack(ctx, t);
	send(t, EVENT_REMAP, t->args[0], t->args[1], 0, 0, 0);
	return 0;
}

SEC("tracepoint/syscalls/sys_exit_mremap")
int exit_mremap(struct trace_event_raw_sys_exit *ctx)
{
	struct thread *t = known_thread();

	if (!t)
		return 0;
	if (failed(ctx->ret))
		send(t, EVENT_REMAP_FAILED, t->args[0], t->args[1], 0, 0, 0);
	else
		mapped(t, EVENT_REMAPPED, ctx->ret, t->args[2], t->args[0]);
	return 0;
}

SEC("tracepoint/syscalls/sys_enter_mprotect")
int enter_mprotect(struct trace_event_raw_sys_enter *ctx)
{
	enter_mapping(ctx, 3);
	return 0;
}

SEC("tracepoint/syscalls/sys_exit_mprotect")
int exit_mprotect(struct trace_event_raw_sys_exit *ctx)
{
	struct thread *t = known_thread();

	if (t && !ctx->ret)
		send(t, EVENT_PROTECT, t->args[0], t->args[1], 0, 0, 0);
	return 0;
}

SEC("tracepoint/syscalls/sys_enter_brk")
int enter_brk(struct trace_event_raw_sys_enter *ctx)
{
	struct thread *t = enter_mapping(ctx, 1);

	/* sbrk asks where the break is before it moves it for the first time */
	if (t && t->args[0])
		mapping_stack(ctx, t);
	return 0;
}

SEC("tracepoint/syscalls/sys_exit_brk")
int exit_brk(struct trace_event_raw_sys_exit *ctx)
{
	struct thread *t = known_thread();

	if (!t)
		return 0;
	if (t->args[0])
		mapped(t, EVENT_BRK, ctx->ret, 0, t->args[0]);
	else
		send(t, EVENT_BRK, ctx->ret, 0, 0, 0, in_allocator(t) ? FLAG_ALLOCATOR : 0);
	return 0;
}

/* --- processes --- */

static __always_inline void send_process(__u32 kind, __u64 process, __u64 other, __u32 tgid)
{
	struct memleak_event *e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);

	if (!e) {
		count_lost();
		return;
	}
	__builtin_memset(e, 0, sizeof(*e));
	e->time_ns = bpf_ktime_get_ns();
	e->process = process;
	e->other = other;
	e->kind = kind;
	e->tid = tgid;
	bpf_ringbuf_submit(e, MW_RB_FORCE_WAKEUP);
}

SEC("raw_tp/sched_process_fork")
int on_fork(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *parent = (void *)ctx->args[0];
	struct task_struct *child = (void *)ctx->args[1];
	__u32 tgid = BPF_CORE_READ(parent, tgid);
	__u32 born = BPF_CORE_READ(child, tgid);
	struct process *p, new;

	if (tgid == born)
		return 0; /* a thread */
	p = bpf_map_lookup_elem(&processes, &tgid);
	if (!p)
		return 0;
	/* A PID is not used again within a millisecond. */
	new.id = (__u64)born << 32 | (__u32)(bpf_ktime_get_ns() >> 20);
	if (follow && !bpf_map_update_elem(&processes, &born, &new, BPF_ANY))
		__sync_fetch_and_add(&epoch, 1);
	send_process(EVENT_FORK, p->id, new.id, born);
	return 0;
}

SEC("raw_tp/sched_process_exec")
int on_exec(struct bpf_raw_tracepoint_args *ctx)
{
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct process *p = bpf_map_lookup_elem(&processes, &tgid), new;
	__u64 old;

	if (!p)
		return 0;
	old = p->id;
	new.id = (old & ~0xffffffffULL) | (__u32)(old + 1);
	bpf_map_update_elem(&processes, &tgid, &new, BPF_EXIST);
	__sync_fetch_and_add(&epoch, 1);
	send_process(EVENT_EXEC, old, new.id, tgid);
	return 0;
}

SEC("raw_tp/sched_process_exit")
int on_exit(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *task = (void *)ctx->args[0];
	__u32 tid = BPF_CORE_READ(task, pid), tgid = BPF_CORE_READ(task, tgid);
	struct process *p = bpf_map_lookup_elem(&processes, &tgid);
	__u64 id;

	if (!p)
		return 0;
	if (!with_storage)
		bpf_map_delete_elem(&threads_by_tid, &tid);
	/* Counted down before this point on every kernel (do_exit(), kernel/exit.c). */
	if (BPF_CORE_READ(task, signal, live.counter))
		return 0;
	id = p->id;
	bpf_map_delete_elem(&processes, &tgid);
	__sync_fetch_and_add(&epoch, 1);
	send_process(EVENT_EXIT, id, 0, tgid);
	return 0;
}
