//! The user-space half of `src/bpf/include/rss.bpf.h`: where the parts of a
//! resident counter are, and how far off it is without them.

use std::cell::RefCell;

use crate::context::Context;
use crate::error::Result;
use crate::kernel::KernelFacts;
use crate::kernel::Need;
use crate::percpu;
use crate::percpu::Offsets;

/// What a thread may keep to itself before 6.2, in pages:
/// `RSS_TASK_CACHE_PAGES` of rss.bpf.h.
pub const THREAD_CACHE_PAGES: u64 = 66 * 16;

/// CPUs whose parts the BPF side has room for: `RSS_MAX_CPUS` of rss.bpf.h.
const MAX_CPUS: usize = 1024;

/// How far a counter may be off for each CPU whose part is not added:
/// compute_batch_value(), lib/percpu_counter.c.
fn bound_pages(online: usize, left_out: usize) -> u64 {
    (left_out * (2 * online).max(32)) as u64
}

/// Before 6.2 the counters are kept per thread (see compat.bpf.h).
pub fn is_split(facts: &KernelFacts) -> bool {
    facts.has(Need::Field("mm_rss_stat", "count"))
}

/// Where the parts of a resident counter are on this machine.
pub struct Parts {
    /// Empty where no CPU keeps a part, or where they could not be found.
    offsets: Offsets,
    /// Pages by which each counter may be off all the same.
    pub error_pages: u64,
    /// Why, in words; `None`: exact.
    pub note: Option<String>,
    /// The CPUs the offsets were measured on.
    online: RefCell<Vec<u32>>,
}

impl Parts {
    /// Finds them.
    ///
    /// # Errors
    /// `/sys` cannot be read.
    pub fn find(ctx: &Context) -> Result<Self> {
        let online = ctx.procfs.online_cpus()?;
        let exact = |offsets| Self {
            offsets,
            error_pages: 0,
            note: None,
            online: RefCell::new(online.clone()),
        };
        if is_split(&ctx.kernel) {
            return Ok(exact(Offsets::new()));
        }
        Ok(match percpu::offsets(&ctx.kernel, &ctx.procfs) {
            Ok(offsets) if offsets.len() <= MAX_CPUS => exact(offsets),
            Ok(offsets) => {
                let left_out = offsets.len() - MAX_CPUS;
                let bound = bound_pages(online.len(), left_out);
                let note = format!(
                    "resident counters may be off by {bound} pages: {left_out} CPUs are too many"
                );
                Self { error_pages: bound, note: Some(note), ..exact(offsets) }
            }
            Err(error) => {
                let bound = bound_pages(online.len(), online.len());
                let note = format!("resident counters may be off by {bound} pages: {error}");
                Self { error_pages: bound, note: Some(note), ..exact(Offsets::new()) }
            }
        })
    }

    /// Writes the offsets into a BPF object's data, CPU by CPU.
    pub fn store(&self, offset: &mut [u64], known: &mut [u8]) {
        store(&self.offsets, offset, known);
    }

    /// Measures again if CPUs have come or gone since, and hands the result to
    /// `write`.
    ///
    /// # Errors
    /// `/sys` cannot be read, or the kernel refuses what it allowed before.
    pub fn refresh(
        &self,
        ctx: &Context,
        write: impl FnOnce(&dyn Fn(&mut [u64], &mut [u8])),
    ) -> Result<()> {
        let now = ctx.procfs.online_cpus()?;
        if self.offsets.is_empty() || *self.online.borrow() == now {
            return Ok(());
        }
        let offsets = percpu::offsets(&ctx.kernel, &ctx.procfs)?;
        write(&|offset, known| store(&offsets, offset, known));
        self.online.replace(now);
        Ok(())
    }
}

fn store(offsets: &Offsets, offset: &mut [u64], known: &mut [u8]) {
    for (from, (to, known)) in offsets.iter().zip(offset.iter_mut().zip(known)) {
        *to = from.unwrap_or(0);
        *known = from.is_some().into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_bounded_by_the_kernels_batch() {
        assert_eq!(bound_pages(2, 2), 64);
        assert_eq!(bound_pages(2000, 3), 12_000);
    }

    #[test]
    fn a_cpu_without_a_part_is_marked_unknown() {
        let (mut offset, mut known) = ([9; 3], [9; 3]);
        store(&vec![Some(7), None], &mut offset, &mut known);
        assert_eq!((offset, known), ([7, 0, 9], [1, 0, 9]));
    }
}
