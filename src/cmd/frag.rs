//! `frag`: free blocks of memory by node, zone and order, and how broken up they
//! are.

use std::fs;
use std::mem::MaybeUninit;
use std::process::ExitCode;

use clap::Args;
use libbpf_rs::skel::OpenSkel as _;
use libbpf_rs::skel::SkelBuilder as _;

use super::Tool;
use super::skeleton;
use crate::attach::Choice;
use crate::attach::Hook;
use crate::attach::Plan;
use crate::attach::instead;
use crate::attach::prepare;
use crate::cli::KernelArgs;
use crate::cli::LimitArgs;
use crate::cli::OutputArgs;
use crate::context::Context;
use crate::engine::Pace;
use crate::engine::Run;
use crate::engine::every;
use crate::error::Context as _;
use crate::error::Error;
use crate::error::Result;
use crate::event::read_shared;
use crate::kernel::Need;
use crate::nodes;
use crate::nodes::ZONES_PER_NODE;
use crate::nodes::run_once;
use crate::output::ALWAYS;
use crate::output::Column;
use crate::output::Printer;
use crate::output::Row;
use crate::output::Unit;
use crate::output::Value;
use crate::output::describe;
use crate::output::note;
use crate::rights;
use crate::target::Target;
use crate::time::WallTime;
use crate::units::pages_to_bytes;
use crate::zone;
use crate::zones::FreeBlocks;
use crate::zones::Zone;
use crate::zones::from_buddyinfo;

skeleton!("frag");
use skel::types::frag_zone as RawZone;

// SAFETY: integers and byte arrays without implicit padding (the size is
// asserted in frag.bpf.c), so every bit pattern is a valid value.
unsafe impl plain::Plain for RawZone {}

/// The reader finds its way through the nodes with type information.
const TYPES: Need = Need::Field("pglist_data", "node_zonelists");

/// What serves without rights.
const BUDDYINFO: &str = "/proc/buddyinfo";

static CHOICE: Choice = Choice {
    purpose: "to read the free lists of zones",
    hooks: &[
        Hook {
            name: "memcg:nodeinfo",
            programs: &["read_zones", "learn_memcg"],
            attach: &[],
            needs: &[TYPES, Need::Field("mem_cgroup", "nodeinfo"), Need::TestRun],
            loses: "",
        },
        Hook {
            name: "ksym:node_data",
            programs: &["read_zones", "learn_ksym"],
            attach: &[],
            needs: &[TYPES, Need::Symbol("node_data"), Need::TestRun],
            loses: "",
        },
        Hook {
            name: "proc:buddyinfo",
            programs: &[],
            attach: &[],
            needs: &[Need::Path(BUDDYINFO)],
            // The numbers are the same; each reading holds every zone's lock in turn.
            loses: "",
        },
    ],
};

/// Free blocks of each order, and how broken up free memory is
///
/// Each interval: for every node, zone and order, how many free blocks there are,
/// why a request of that size would fail, and how much free memory is of no use
/// for it.
#[derive(Args, Debug)]
#[command(after_long_help = describe(Frag::COLUMNS))]
pub struct Frag {
    /// Only these orders; may be repeated and comma-separated
    #[arg(long, value_name = "N", value_delimiter = ',')]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=31))]
    order: Vec<u32>,
    /// Only zones of this name, such as Normal
    #[arg(long, value_name = "NAME")]
    zone: Option<String>,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    kernel: KernelArgs,
}

/// The free blocks of one order.
struct Free {
    time: WallTime,
    nid: u32,
    zone: String,
    order: u32,
    blocks: u64,
    suitable: u64,
    /// Both in thousandths.
    fragmentation: i64,
    unusable: u64,
}

impl Row<9> for Free {
    const COLUMNS: [Column; 9] = [
        Column::new("TIME", "time", Unit::Time, 8, ALWAYS, "when the free lists were read"),
        Column::new("NODE", "node", Unit::Id, 4, ALWAYS, "memory node"),
        Column::new("ZONE", "zone", Unit::Text, 7, ALWAYS, "zone of that node"),
        Column::new("ORDER", "order", Unit::Id, 5, ALWAYS, "size of a block: 2^ORDER pages"),
        Column::new("BLOCKS", "blocks", Unit::Count, 8, ALWAYS, "free blocks of just that order"),
        Column::new("FREE", "free", Unit::Size, 10, ALWAYS, "memory in those blocks"),
        Column::new(
            "SUITABLE",
            "suitable",
            Unit::Count,
            8,
            ALWAYS,
            "blocks of that order to be had, larger ones broken up",
        ),
        Column::new(
            "EXTFRAG",
            "extfrag_index",
            Unit::Index,
            7,
            ALWAYS,
            "why a request would fail: 0 too little memory, 1 too broken up; -1: it would not",
        ),
        Column::new(
            "UNUSABLE",
            "unusable_index",
            Unit::Index,
            8,
            ALWAYS,
            "share of the zone's free memory in blocks too small for that order",
        ),
    ];

    fn values(&self) -> [Value<'_>; 9] {
        [
            Value::Time(self.time),
            Value::Count(self.nid.into()),
            Value::Text((&self.zone).into()),
            Value::Count(self.order.into()),
            Value::Count(self.blocks),
            Value::Bytes(pages_to_bytes(self.blocks << self.order)),
            Value::Count(self.suitable),
            Value::Real(self.fragmentation as f64 / 1000.0),
            Value::Real(self.unusable as f64 / 1000.0),
        ]
    }
}

impl Tool for Frag {
    const CHOICE: Option<&'static Choice> = Some(&CHOICE);
    const COLUMNS: &'static [Column] = &<Free as Row<9>>::COLUMNS;

    fn run(self) -> Result<ExitCode> {
        let limits = (&self.limits).into();
        let ctx = Context::new("frag", &self.kernel, limits, |_| Ok(Target::default()))?;
        let mut plan = prepare(&ctx, &CHOICE)?;
        while plan.hook.needs_rights() {
            if self.run_on_bpf(&ctx, &plan)? {
                return Ok(ExitCode::SUCCESS);
            }
            // Memory cgroups can be switched off, which only shows here.
            let (name, why) = (plan.hook.name, "led to no memory node");
            plan = instead(&ctx.kernel, &CHOICE, ctx.hook.is_some(), plan, why)?;
            note(&format!("frag: {name} {why}; using {}", plan.hook.name));
        }
        self.report(&ctx, &plan, || {
            let text = fs::read_to_string(ctx.procfs.file("proc/buddyinfo"));
            from_buddyinfo(&text.context(|| format!("reading {BUDDYINFO}"))?)
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Frag {
    /// Whether it ran: `false` if the hook led to no memory node.
    fn run_on_bpf(&self, ctx: &Context, plan: &Plan) -> Result<bool> {
        let mut storage = MaybeUninit::uninit();
        let builder = skel::FragSkelBuilder { obj_builder: ctx.kernel.object_builder()? };
        let mut open = builder.open(&mut storage)?;
        plan.select(open.open_object_mut());
        let possible = nodes::possible(&ctx.procfs);
        open.maps.zones.set_max_entries(possible * ZONES_PER_NODE)?;
        if let Some(constants) = open.maps.rodata_data.as_deref_mut() {
            constants.zone_slots = possible * ZONES_PER_NODE;
            if plan.hook.programs.contains(&"learn_ksym") {
                constants.node_data_addr = nodes::table(&ctx.kernel)?;
            }
        }
        let mut skel = open
            .load()
            .context(|| format!("loading the programs of {}", plan.hook.name))
            .map_err(rights::explain_refusal)?;
        let shared = skel.maps.bss_data.take().ok_or_else(|| Error::failure("no data section"))?;
        match plan.hook.name {
            "memcg:nodeinfo" => run_once(&skel.progs.learn_memcg)?,
            _ => run_once(&skel.progs.learn_ksym)?,
        }
        if read_shared(&shared.first_node) == 0 {
            return Ok(false);
        }
        self.report(ctx, plan, || {
            run_once(&skel.progs.read_zones)?;
            let round = read_shared(&shared.rounds);
            let zones = nodes::entries::<RawZone>(&skel.maps.zones)?;
            let mut fresh: Vec<Zone> =
                zones.iter().filter(|it| it.round == round).map(|it| zone!(it.state)).collect();
            fresh.sort_by_key(|zone| (zone.nid, zone.index));
            Ok(fresh.into_iter().map(FreeBlocks::from).collect())
        })?;
        Ok(true)
    }

    fn report(
        &self,
        ctx: &Context,
        plan: &Plan,
        read: impl Fn() -> Result<Vec<FreeBlocks>>,
    ) -> Result<()> {
        let printer = Printer::stdout::<Free, 9>((&self.output).into(), ALWAYS)?;
        let pace = Pace { at_start: true, at_end: false, by_row: false };
        let run = Run { hook: plan.hook.name, notes: plan.notes(), pace, lost: &|| 0 };
        // A name nobody has is a mistake, and so is an order this kernel has not.
        self.check(&read()?)?;
        every(ctx, run, printer, |printer| {
            let time = WallTime::now();
            for zone in read()? {
                if self.zone.as_ref().is_some_and(|name| *name != zone.zone) {
                    continue;
                }
                for (order, &blocks) in (0u32..).zip(&zone.blocks) {
                    if !self.order.is_empty() && !self.order.contains(&order) {
                        continue;
                    }
                    printer.row(&Free {
                        time,
                        nid: zone.nid,
                        zone: zone.zone.clone(),
                        order,
                        blocks,
                        suitable: zone.suitable(order),
                        fragmentation: zone.fragmentation(order),
                        unusable: zone.unusable(order),
                    })?;
                }
            }
            Ok(())
        })
    }

    fn check(&self, zones: &[FreeBlocks]) -> Result<()> {
        if let Some(name) = self.zone.as_ref().filter(|it| zones.iter().all(|zone| zone.zone != **it)) {
            let mut known: Vec<&str> = zones.iter().map(|zone| &*zone.zone).collect();
            known.sort_unstable();
            known.dedup();
            return Err(Error::usage(format!(
                "--zone `{name}`: no such zone; there are {}",
                known.join(", ")
            )));
        }
        let orders = zones.iter().map(|zone| zone.blocks.len()).max().unwrap_or(0);
        match self.order.iter().find(|&&order| order as usize >= orders) {
            Some(order) => Err(Error::usage(format!(
                "--order {order}: this kernel has orders 0 to {}",
                orders.saturating_sub(1)
            ))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attach::plan;
    use crate::kernel::KernelFacts;
    use crate::output::tests::golden;

    #[test]
    fn the_output_is_the_documented_one() {
        let zone = FreeBlocks { nid: 0, zone: "DMA32".into(), blocks: vec![7919, 101, 23, 0] };
        let free = |order: u32| Free {
            time: WallTime::fixed(),
            nid: zone.nid,
            zone: zone.zone.clone(),
            order,
            blocks: zone.blocks[order as usize],
            suitable: zone.suitable(order),
            fragmentation: zone.fragmentation(order),
            unusable: zone.unusable(order),
        };
        golden::<Free, 9>("frag", ALWAYS, &[free(0), free(2), free(3)]);
    }

    #[test]
    fn what_takes_no_rights_comes_last() {
        let chosen = |has: &[Need]| plan(&KernelFacts::fake(has), &CHOICE, None).unwrap().hook.name;
        let proc = Need::Path(BUDDYINFO);
        let memcg = Need::Field("mem_cgroup", "nodeinfo");
        assert_eq!(chosen(&[proc, TYPES, memcg, Need::TestRun]), "memcg:nodeinfo");
        assert_eq!(chosen(&[proc, TYPES, Need::Symbol("node_data"), Need::TestRun]), "ksym:node_data");
        assert_eq!(chosen(&[proc, TYPES, memcg]), "proc:buddyinfo");
    }
}
