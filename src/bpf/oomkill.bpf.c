// SPDX-License-Identifier: GPL-2.0-only
/*
 * oomkill: each process the OOM killer kills, with all that is known at that
 * moment. One record for each process, taken as its SIGKILL is sent: the victim
 * still has its memory, the thread that ran out of it is the current one, and
 * what it asked for is in its `struct oom_control`.
 *
 * Nothing here or in user space may need memory to take a record: it is filled
 * in place, in a ring that exists.
 */
#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "cgroup.bpf.h"
#include "compat.bpf.h"
#include "event.bpf.h"
#include "rss.bpf.h"
#include "target.bpf.h"
#include "zones.bpf.h"

char LICENSE[] SEC("license") = "GPL";

#define SIGKILL 9
/* include/linux/sched/signal.h: not pointers */
#define SEND_SIG_NOINFO 0
#define SEND_SIG_PRIV 1

#define COMMAND_BYTES 256
#define NODE_WORDS 16	      /* 1024 nodes, the most a kernel can have (NODES_SHIFT) */
#define MM_THREADS 64	      /* threads looked at for one that still has its memory */
#define ROLE_NONE 0xffffffffu /* has had its row */
#define KILL_DEPTH 16	      /* functions between a write and the signal it sends */
#define KILLERS 16
#define ZONES 32      /* zones there is room for */
#define ZONES_SEEN 96 /* and those that are counted at least */
#define COMM_BYTES 16

/* Who sent the signal; the order of Sender in src/oom/kill.rs. */
enum sender {
	SENDER_KERNEL, /* the OOM killer */
	SENDER_DAEMON, /* a process known to kill for memory */
	SENDER_CGROUP, /* whoever wrote to cgroup.kill */
};

/* Why this process; the order of Role in src/oom/kill.rs. */
enum role {
	ROLE_CHOSEN, /* the largest, or whoever was to be killed */
	ROLE_SHARES, /* shares the memory of one that was killed */
	ROLE_GROUP,  /* of a cgroup that is killed as a whole (memory.oom.group) */
};

/* The order of Constraint in src/oom/kill.rs. */
enum constraint {
	LIMIT_UNKNOWN,
	LIMIT_GLOBAL,
	LIMIT_MEMCG,
	LIMIT_CPUSET,
	LIMIT_MEMPOLICY,
};

#define KILL_NO_MM 1u	 /* the victim's memory was gone already */
#define KILL_CALL 2u	 /* the allocation that failed is known */
#define KILL_V2 4u	 /* the cgroup of the limit is one of v2 */
#define KILL_KTHREAD 8u	 /* the trigger is a kernel thread */
#define KILL_COMMAND 16u /* the trigger's command line could be read */

struct oomkill_kill {
	__u64 time_ns;	/* CLOCK_MONOTONIC */
	__u64 number;	/* of the OOM: the victims of one have the same */
	__u64 start_ns; /* start of the victim; with its PID, identifies it */
	__u64 vm_pages;
	__u64 anon_pages;
	__u64 file_pages;
	__u64 shmem_pages;
	__u64 swap_pages;
	__u64 pgtable_bytes;
	__s64 points;	    /* badness of the process that was chosen, in pages */
	__u64 domain_pages; /* memory and swap of what ran out */
	__u64 limit_pages;  /* of the cgroup: memory.max, or v1's limit */
	__u64 usage_pages;
	__u64 swap_limit_pages; /* v1: of memory and swap together */
	__u64 swap_usage_pages;
	__u64 nodes[NODE_WORDS]; /* a bit a node: those that were allowed */
	__u64 trigger_start_ns;
	__u32 sender;
	__u32 role;
	__u32 constraint;
	__u32 flags;
	__u32 gfp;
	__s32 order;
	__s32 score_adj;
	__u32 error_pages; /* the four resident counters may be off by this */
	__u32 pid;
	__u32 parent_pid;
	__u32 uid;
	__u32 trigger_pid;
	__u32 trigger_tid;
	__u32 trigger_uid;
	__u32 command_bytes; /* of `command` in use */
	__u16 zone_count;
	__u16 zones_left_out;
	__u8 comm[COMM_BYTES];
	__u8 parent_comm[COMM_BYTES];
	__u8 trigger_comm[COMM_BYTES];
	__u8 thread_comm[COMM_BYTES]; /* of the trigger's thread */
	__u8 command[COMMAND_BYTES];  /* of the trigger, each argument with its terminator */
	struct cgroup_names cgroup;
	struct cgroup_names trigger_cgroup;
	struct cgroup_names limit_cgroup;
	struct zone_state zones[ZONES];
};

/* A process as the history keeps it. */
struct oomkill_process {
	__u64 start_ns;
	__u64 anon_pages;
	__u64 file_pages;
	__u64 shmem_pages;
	__u64 swap_pages;
	__u32 pid;
	__s32 score_adj;
	__u8 comm[COMM_BYTES];
};
_Static_assert(sizeof(struct oomkill_process) == 64, "process layout");

/* Keeps the types in BTF, from which the Rust side is generated. */
const struct oomkill_kill *oomkill_kill_type __attribute__((unused));
const struct oomkill_process *oomkill_process_type __attribute__((unused));

const volatile bool by_mark;   /* oom_kill_process itself cannot be seen */
const volatile bool all_kills; /* those of daemons and of cgroup.kill too */
const volatile __u32 killers;  /* daemons in the list */
/* Where the code of cgroup_kill_write() is (kernel/cgroup/cgroup.c); 0: nowhere. */
const volatile __u64 kill_write_start;
const volatile __u64 kill_write_end;
const volatile __u8 killer_names[KILLERS][COMM_BYTES]; /* zero-padded */

/*
 * The OOM killer at work. It holds oom_lock (mm/oom_kill.c), so there is one at
 * a time, and what is written here has one writer.
 */
__u64 oom_number; /* OOMs so far */
__u64 oom_control_addr;
__u64 oom_mm;	  /* memory of the process killed last */
__u32 oom_pid;	  /* that process */
__u32 oom_chosen; /* the process killed first */
__u32 oom_tid;	  /* the thread that kills; 0: none does */
__u32 oom_victims;
/* The SIGKILL sent last by the kernel itself, for the tracepoint that follows. */
__u64 sent_to;
__u32 sent_by;

static __always_inline void oom_begins(struct oom_control *oc)
{
	oom_number++;
	oom_control_addr = (__u64)oc;
	oom_mm = 0;
	oom_pid = 0;
	oom_victims = 0;
	oom_tid = (__u32)bpf_get_current_pid_tgid();
}

/*
 * The functions from here that are not inlined are not static either: the verifier
 * then walks their loops once, and not once for each state of the caller. Before
 * 5.12 the arguments of such functions are numbers.
 */

/* The memory of a process, of whichever of its threads; 0: it has none any more. */
__noinline __u64 memory_of(__u64 task_addr)
{
	struct task_struct *task = (void *)task_addr;
	struct mm_struct *mm = BPF_CORE_READ(task, mm);
	struct signal_struct *signal;
	struct list_head *head, *node;

	if (mm)
		return (__u64)mm;
	/* The first thread has left; find_lock_task_mm() looks at the others too. */
	signal = BPF_CORE_READ(task, signal);
	head = (void *)signal + bpf_core_field_offset(struct signal_struct, thread_head);
	node = BPF_CORE_READ(head, next);
	for (int i = 0; i < MM_THREADS; i++) {
		if (!node || node == head)
			break;
		task = (void *)node - bpf_core_field_offset(struct task_struct, thread_node);
		mm = BPF_CORE_READ(task, mm);
		if (mm)
			return (__u64)mm;
		node = BPF_CORE_READ(node, next);
	}
	return 0;
}

/* Where read_rss() puts what it read: used with interrupts off. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct rss);
} rss_here SEC(".maps");

__noinline int read_rss(__u64 leader_addr, __u64 mm_addr)
{
	__u32 zero = 0;
	struct rss *rss = bpf_map_lookup_elem(&rss_here, &zero);

	if (rss)
		rss_read_any((void *)leader_addr, (void *)mm_addr, rss);
	return 0;
}

static __always_inline __u32 constraint_of(struct oom_control *oc)
{
	__u32 constraint = BPF_CORE_READ(oc, constraint);

	if (constraint == bpf_core_enum_value(enum oom_constraint, CONSTRAINT_MEMCG))
		return LIMIT_MEMCG;
	if (constraint == bpf_core_enum_value(enum oom_constraint, CONSTRAINT_CPUSET))
		return LIMIT_CPUSET;
	if (constraint == bpf_core_enum_value(enum oom_constraint, CONSTRAINT_MEMORY_POLICY))
		return LIMIT_MEMPOLICY;
	return LIMIT_GLOBAL;
}

static __always_inline struct cgroup *cpuset_of(struct task_struct *task)
{
	if (!bpf_core_enum_value_exists(enum cgroup_subsys_id, cpuset_cgrp_id))
		return NULL;
	return BPF_CORE_READ(task, cgroups,
			     subsys[bpf_core_enum_value(enum cgroup_subsys_id, cpuset_cgrp_id)],
			     cgroup);
}

#define NODES_SIZE                                                                                 \
	(bpf_core_field_size(((struct task_struct *)0)->mems_allowed) < NODE_WORDS * 8             \
		 ? bpf_core_field_size(((struct task_struct *)0)->mems_allowed)                    \
		 : NODE_WORDS * 8)

/* What ran out, and of what. */
static __always_inline void fill_limit(struct oomkill_kill *k, struct oom_control *oc)
{
	struct task_struct *trigger = (void *)bpf_get_current_task();
	struct mem_cgroup *memcg = BPF_CORE_READ(oc, memcg);
	struct cgroup *limiting = NULL;
	const void *nodes = NULL;

	k->flags |= KILL_CALL;
	k->gfp = BPF_CORE_READ(oc, gfp_mask);
	k->order = BPF_CORE_READ(oc, order);
	k->points = BPF_CORE_READ(oc, chosen_points);
	k->domain_pages = BPF_CORE_READ(oc, totalpages);
	k->constraint = constraint_of(oc);
	if (k->constraint == LIMIT_MEMCG && memcg) {
		limiting = cgroup_of_memcg(memcg);
		k->limit_pages = BPF_CORE_READ(memcg, memory.max);
		k->usage_pages = BPF_CORE_READ(memcg, memory.usage.counter);
		k->swap_limit_pages = BPF_CORE_READ(memcg, swap.max);
		k->swap_usage_pages = BPF_CORE_READ(memcg, swap.usage.counter);
		if (BPF_CORE_READ(limiting, root) ==
		    BPF_CORE_READ(trigger, cgroups, dfl_cgrp, root))
			k->flags |= KILL_V2;
	} else if (k->constraint == LIMIT_CPUSET) {
		limiting = cpuset_of(trigger);
		nodes = __builtin_preserve_access_index(&trigger->mems_allowed);
	} else if (k->constraint == LIMIT_MEMPOLICY) {
		nodes = BPF_CORE_READ(oc, nodemask);
	}
	if (nodes)
		bpf_probe_read_kernel(k->nodes, NODES_SIZE, nodes);
	if (limiting)
		cgroup_read(&k->limit_cgroup, limiting);
}

static __always_inline void fill_victim(struct oomkill_kill *k, struct task_struct *task,
					struct task_struct *leader, struct mm_struct *mm)
{
	__u32 zero = 0;
	struct rss *rss;

	k->start_ns = BPF_CORE_READ(leader, start_time);
	k->pid = BPF_CORE_READ(task, tgid);
	k->parent_pid = BPF_CORE_READ(leader, real_parent, tgid);
	k->uid = BPF_CORE_READ(task, real_cred, uid.val);
	k->score_adj = BPF_CORE_READ(task, signal, oom_score_adj);
	BPF_CORE_READ_INTO(&k->comm, leader, comm);
	BPF_CORE_READ_INTO(&k->parent_comm, leader, real_parent, group_leader, comm);
	cgroup_read(&k->cgroup, cgroup_of_task(task));
	if (!mm) {
		k->flags |= KILL_NO_MM;
		return;
	}
	read_rss((__u64)leader, (__u64)mm);
	rss = bpf_map_lookup_elem(&rss_here, &zero);
	if (rss) {
		k->error_pages = rss->error_pages;
		k->file_pages = rss->pages[MM_FILEPAGES];
		k->anon_pages = rss->pages[MM_ANONPAGES];
		k->swap_pages = rss->pages[MM_SWAPENTS];
		k->shmem_pages = rss->pages[MM_SHMEMPAGES];
	}
	k->vm_pages = BPF_CORE_READ(mm, total_vm);
	k->pgtable_bytes = BPF_CORE_READ(mm, pgtables_bytes.counter);
}

/* The current thread, which ran out of memory or sends the signal. */
static __always_inline void fill_trigger(struct oomkill_kill *k)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct mm_struct *mm = BPF_CORE_READ(task, mm);
	__u64 ids = bpf_get_current_pid_tgid();

	k->trigger_pid = ids >> 32;
	k->trigger_tid = (__u32)ids;
	k->trigger_uid = BPF_CORE_READ(task, real_cred, uid.val);
	k->trigger_start_ns = BPF_CORE_READ(task, group_leader, start_time);
	BPF_CORE_READ_INTO(&k->trigger_comm, task, group_leader, comm);
	BPF_CORE_READ_INTO(&k->thread_comm, task, comm);
	cgroup_read(&k->trigger_cgroup, cgroup_of_task(task));
	if (BPF_CORE_READ(task, flags) & PF_KTHREAD) {
		k->flags |= KILL_KTHREAD;
	} else if (mm) {
		__u64 start = BPF_CORE_READ(mm, arg_start);
		__u64 bytes = BPF_CORE_READ(mm, arg_end) - start;

		if (bytes > COMMAND_BYTES)
			bytes = COMMAND_BYTES;
		/* Of a page that is not there nothing is read, and user space looks. */
		if (bytes && !bpf_probe_read_user(k->command, bytes, (void *)start)) {
			k->flags |= KILL_COMMAND;
			k->command_bytes = bytes;
		}
	}
}

/* Any node: from it all zones can be reached. */
static __always_inline struct pglist_data *some_node(struct oom_control *oc)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct zonelist *zonelist = oc ? BPF_CORE_READ(oc, zonelist) : NULL;
	struct cgroup_subsys_state *css;
	struct mem_cgroup *memcg;

	if (zonelist)
		return BPF_CORE_READ(zonelist, _zonerefs[0].zone, zone_pgdat);
	if (!bpf_core_enum_value_exists(enum cgroup_subsys_id, memory_cgrp_id))
		return NULL;
	css = BPF_CORE_READ(task, cgroups,
			    subsys[bpf_core_enum_value(enum cgroup_subsys_id, memory_cgrp_id)]);
	if (!css)
		return NULL;
	memcg = (void *)css - bpf_core_field_offset(struct mem_cgroup, css);
	for (int nid = 0; nid < 8; nid++) { /* node 0 can be absent */
		struct mem_cgroup_per_node *node = BPF_CORE_READ(memcg, nodeinfo[nid]);

		if (node)
			return BPF_CORE_READ(node, lruvec.pgdat);
	}
	return NULL;
}

static __always_inline void fill_zones(struct oomkill_kill *k, struct pglist_data *node)
{
	if (!node)
		return;
	for (__u32 i = 0; i < ZONES_SEEN; i++) {
		struct zone *zone = BPF_CORE_READ(node, node_zonelists[0]._zonerefs[i].zone);

		if (!zone)
			break;
		if (i < ZONES) {
			zone_read(zone, &k->zones[i]);
			k->zone_count = i + 1;
		} else {
			k->zones_left_out = i + 1 - ZONES;
		}
	}
}

static __always_inline void report(struct task_struct *task, struct mm_struct *mm, __u32 sender,
				   __u32 role)
{
	struct task_struct *leader = BPF_CORE_READ(task, group_leader);
	struct oom_control *oc = NULL;
	struct oomkill_kill *k;

	if (!target_matches(task, leader, BPF_CORE_READ(task, tgid)))
		return;
	k = bpf_ringbuf_reserve(&events, sizeof(*k), 0);
	if (!k) {
		count_lost();
		return;
	}
	/* All but the names, of which only what is written is read. */
	__builtin_memset(k, 0, __builtin_offsetof(struct oomkill_kill, comm));
	k->cgroup.bytes = 0;
	k->trigger_cgroup.bytes = 0;
	k->limit_cgroup.bytes = 0;
	k->limit_cgroup.flags = 0;
	k->time_ns = bpf_ktime_get_ns();
	k->number = sender == SENDER_KERNEL ? oom_number : 0;
	k->sender = sender;
	k->role = role;
	if (sender == SENDER_KERNEL && !by_mark)
		oc = (void *)oom_control_addr;
	/* What the verifier needs longest for comes before what branches. */
	if (role == ROLE_CHOSEN)
		fill_zones(k, some_node(oc));
	fill_victim(k, task, leader, mm);
	fill_trigger(k);
	if (oc)
		fill_limit(k, oc);
	bpf_ringbuf_submit(k, BPF_RB_FORCE_WAKEUP);
}

/*
 * The OOM killer kills a process: first the one it chose, then those that go with
 * it. Of a group that is all of its members, the one it chose once more.
 */
static __always_inline __u32 role_of(struct task_struct *task, struct mm_struct *mm)
{
	__u32 pid = BPF_CORE_READ(task, tgid);

	if (oom_victims++) {
		if (pid == oom_chosen)
			return ROLE_NONE;
		if (mm && (__u64)mm == oom_mm && pid != oom_pid)
			return ROLE_SHARES;
	} else {
		oom_chosen = pid;
	}
	oom_mm = (__u64)mm;
	oom_pid = pid;
	return oom_victims == 1 ? ROLE_CHOSEN : ROLE_GROUP;
}

/*
 * Whether the current thread is writing to a cgroup.kill. What it sends tells
 * nothing: kill(2) of some kernels sends the same (seen in 7.3).
 */
static __always_inline bool sender_writes_kill(void *ctx)
{
	__u64 ips[KILL_DEPTH] = {};

	if (!kill_write_start || bpf_get_stack(ctx, ips, sizeof(ips), 0) <= 0)
		return false;
	for (int i = 0; i < KILL_DEPTH; i++)
		if (ips[i] > kill_write_start && ips[i] <= kill_write_end)
			return true;
	return false;
}

__noinline int sender_is_known(void)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	__u8 comm[COMM_BYTES] = {};

	BPF_CORE_READ_INTO(&comm, task, group_leader, comm);
	for (__u32 i = 0; i < KILLERS && i < killers; i++) {
		bool same = true;

		for (int j = 0; j < COMM_BYTES; j++) {
			if (comm[j] != killer_names[i][j]) {
				same = false;
				break;
			}
			if (!comm[j])
				break;
		}
		if (same)
			return 1;
	}
	return 0;
}

/* (sig, info, task, group, result); the lock of the task's signals is held. */
SEC("raw_tp/signal_generate")
int on_signal(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *task = (void *)ctx->args[2];
	__u32 tid = (__u32)bpf_get_current_pid_tgid();
	__u32 sender = SENDER_KERNEL, role = ROLE_CHOSEN;
	__u64 info = ctx->args[1];
	struct mm_struct *mm;

	if ((int)ctx->args[0] != SIGKILL)
		return 0;
	mm = (void *)memory_of((__u64)task);
	if (info == SEND_SIG_PRIV) {
		if (by_mark) {
			sent_to = (__u64)task;
			sent_by = tid;
			/* Others with the memory of the one just marked follow it. */
			if (tid != oom_tid || !mm || (__u64)mm != oom_mm)
				return 0;
		} else if (tid != oom_tid) {
			return 0;
		}
		role = role_of(task, mm);
		if (role == ROLE_NONE)
			return 0;
	} else if (!all_kills) {
		return 0;
	} else if (info == SEND_SIG_NOINFO && sender_writes_kill(ctx)) {
		sender = SENDER_CGROUP;
	} else if (sender_is_known()) {
		sender = SENDER_DAEMON;
	} else {
		return 0;
	}
	report(task, mm, sender, role);
	return 0;
}

SEC("fentry/oom_kill_process")
int BPF_PROG(enter_fentry, struct oom_control *oc)
{
	oom_begins(oc);
	return 0;
}

SEC("fexit/oom_kill_process")
int BPF_PROG(leave_fexit)
{
	oom_tid = 0;
	return 0;
}

SEC("kprobe/oom_kill_process")
int BPF_KPROBE(enter_kprobe, struct oom_control *oc)
{
	oom_begins(oc);
	return 0;
}

SEC("kretprobe/oom_kill_process")
int leave_kretprobe(void *ctx)
{
	oom_tid = 0;
	return 0;
}

/*
 * A process gets the reserves, because it was killed or because it is dying by
 * itself: killed is the one whom this thread has just sent the signal.
 */
SEC("raw_tp/mark_victim")
int on_mark(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *task = (void *)sent_to;
	struct mm_struct *mm;

	if (!task || sent_by != (__u32)bpf_get_current_pid_tgid())
		return 0;
	if (mark_is_of_task() ? ctx->args[0] != (__u64)task
			      : (int)ctx->args[0] != BPF_CORE_READ(task, pid))
		return 0;
	oom_begins(NULL);
	sent_to = 0;
	mm = (void *)memory_of((__u64)task);
	report(task, mm, SENDER_KERNEL, role_of(task, mm));
	return 0;
}

/*
 * One visit a process: its leader, or, where the leader has already exited and
 * lost its mm, each thread that still has it (user space keeps the last).
 */
SEC("iter/task")
int visit_tasks(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task, *leader;
	struct oomkill_process p;
	struct mm_struct *mm;
	struct rss rss;

	if (!task)
		return 0;
	mm = task->mm;
	leader = task->group_leader;
	if (!mm || (task != leader && leader->mm))
		return 0;
	rss_read(leader, mm, &rss);
	__builtin_memset(&p, 0, sizeof(p));
	p.start_ns = leader->start_time;
	p.pid = task->tgid;
	p.score_adj = task->signal->oom_score_adj;
	p.file_pages = rss.pages[MM_FILEPAGES];
	p.anon_pages = rss.pages[MM_ANONPAGES];
	p.swap_pages = rss.pages[MM_SWAPENTS];
	p.shmem_pages = rss.pages[MM_SHMEMPAGES];
	bpf_core_read(p.comm, sizeof(p.comm), &leader->comm);
	bpf_seq_write(ctx->meta->seq, &p, sizeof(p));
	return 0;
}
