//! Sampling by bytes: every byte allocated is a sample with the same chance,
//! 1 in `mean`, and a block is followed when it holds a sample (a Poisson
//! process over the bytes). Big blocks are hardly ever left out, small ones are
//! counted by a few of them; dividing by the chance makes the totals unbiased
//! (Horvitz and Thompson, 1952).
//!
//! The kernel side is `src/bpf/include/sample.bpf.h`: it counts allocated bytes
//! down from [`interval`] and follows the block in which the count ends. What
//! is here is the same arithmetic, and what to make of the blocks it followed.

use std::ops::AddAssign;

/// The greatest mean that [`interval`] can draw; greater ones count as this.
pub const MAX_MEAN: u64 = 1 << 40;

/// Binary digits after the point in [`LN`] and in the logarithms made of it.
const POINT: u32 = 40;
/// Binary digits of a mantissa below the leading one.
const MANTISSA: u32 = 32;
/// Of these, the ones below the index into [`LN`].
const BELOW_INDEX: u32 = 26;

/// ln(1 + i/64) × 2^40, rounded; the last is ln 2. The same table is in
/// `sample.bpf.h`.
const LN: [u64; 65] = [
    0,
    17_047_033_376,
    33_833_796_510,
    50_368_117_529,
    66_657_476_617,
    82_709_026_332,
    98_529_610_469,
    114_125_781_579,
    129_503_817_259,
    144_669_735_329,
    159_629_307_968,
    174_388_074_903,
    188_951_355_727,
    203_324_261_410,
    217_511_705_065,
    231_518_412_033,
    245_348_929_333,
    259_007_634_518,
    272_498_743_996,
    285_826_320_846,
    298_994_282_159,
    312_006_405_950,
    324_866_337_668,
    337_577_596_325,
    350_143_580_273,
    362_567_572_664,
    374_852_746_592,
    387_002_169_964,
    399_018_810_095,
    410_905_538_059,
    422_665_132_805,
    434_300_285_060,
    445_813_601_022,
    457_207_605_864,
    468_484_747_058,
    479_647_397_532,
    490_697_858_666,
    501_638_363_140,
    512_471_077_639,
    523_198_105_434,
    533_821_488_828,
    544_343_211_492,
    554_765_200_687,
    565_089_329_383,
    575_317_418_281,
    585_451_237_738,
    595_492_509_607,
    605_442_908_990,
    615_304_065_922,
    625_077_566_966,
    634_764_956_750,
    644_367_739_428,
    653_887_380_089,
    663_325_306_087,
    672_682_908_337,
    681_961_542_539,
    691_162_530_356,
    700_287_160_547,
    709_336_690_050,
    718_312_345_019,
    727_215_321_822,
    736_046_788_000,
    744_807_883_181,
    753_499_719_969,
    762_123_384_786,
];

/// A draw from the exponential distribution, in whole bytes: how many bytes to
/// allocate up to and including the next sample. `random` is any number of 32
/// bits; `mean` is in bytes, up to [`MAX_MEAN`]; 0 makes every byte a sample.
///
/// `1 + floor(mean × -ln u)` with u = (random + ½) / 2^32. The chance of more
/// than n bytes is then exp(-n / mean) for whole n, which is what [`weight`]
/// undoes. Integers only, and no division, as it must be in the kernel:
/// logarithms by table, between its entries a line and the bend of a parabola,
/// good to 2 × 10^-5 of the result and 2^-39
/// of the mean. Where size / mean is not far above 2^-32, the
/// 32 bits of `random` are what limits it.
pub fn interval(random: u32, mean: u64) -> u64 {
    let mean = mean.min(MAX_MEAN);
    // 2^33 u, shifted until its leading one is digit 32.
    let odd = u64::from(random) << 1 | 1;
    let shift = odd.leading_zeros() - (63 - MANTISSA);
    let mantissa = odd << shift;
    let index = (mantissa >> BELOW_INDEX & 63) as usize;
    let below = mantissa & ((1 << BELOW_INDEX) - 1);
    // ln' = 1/x and ln'' = -1/x², so the parabola bends by half the step's square.
    let step = LN[index + 1] - LN[index];
    let bend = ((step >> 10) * (step >> 10)) >> 21;
    let part = (below * ((1 << BELOW_INDEX) - below)) >> BELOW_INDEX;
    let ln = LN[index] + ((step * below) >> BELOW_INDEX) + ((bend * part) >> BELOW_INDEX);
    // -ln u = (1 + shift) ln 2 - ln(mantissa), at most 33 ln 2: below 2^45.
    let nats = (u64::from(shift) + 1) * LN[64] - ln;
    // mean × nats has up to 85 bits; nats in two parts of at most 23 keep both products in 64.
    let (high, low) = (nats >> 22, nats & ((1 << 22) - 1));
    ((mean * high + ((mean * low) >> 22)) >> (POINT - 22)) + 1
}

/// How many blocks of `size` bytes a followed one stands for, when a sample is
/// taken every `mean` bytes: 1 / (1 - exp(-size / mean)). A size of 0 counts as
/// 1 byte; with a mean of 0 every block is followed.
pub fn weight(size: u64, mean: u64) -> f64 {
    1.0 / chance(size, mean)
}

/// The chance that a block holds a sample.
fn chance(size: u64, mean: u64) -> f64 {
    match mean {
        0 => 1.0,
        // exp_m1 keeps its digits where the ratio is small.
        _ => -(-(size.max(1) as f64) / mean.min(MAX_MEAN) as f64).exp_m1(),
    }
}

/// All blocks, as estimated from the ones that were followed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Estimate {
    /// Bytes.
    pub bytes: f64,
    /// Blocks.
    pub blocks: f64,
    /// Estimated variance of `bytes`.
    variance: f64,
}

impl Estimate {
    /// Adds a followed block.
    pub fn add(&mut self, size: u64, mean: u64) {
        let chance = chance(size, mean);
        let bytes = size as f64 / chance;
        self.bytes += bytes;
        self.blocks += 1.0 / chance;
        self.variance += bytes * bytes * (1.0 - chance);
    }

    /// Standard error of `bytes`: the truth is within twice of it in 19 of 20
    /// cases, if at least some tens of blocks were followed.
    pub fn bytes_error(&self) -> f64 {
        self.variance.sqrt()
    }
}

impl AddAssign for Estimate {
    fn add_assign(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.blocks += other.blocks;
        self.variance += other.variance;
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::process::Command;

    use super::*;

    const MEAN: u64 = 512 << 10;

    /// Evenly spread over all random numbers; `count` is a power of two.
    fn spread(count: u32) -> impl Iterator<Item = u32> {
        let step = (u32::MAX / count) + 1;
        (0..count).map(move |i| i * step + step / 2)
    }

    /// What `interval` stands for, before it is made a whole number.
    fn exact(random: u32, mean: u64) -> f64 {
        -((f64::from(random) + 0.5) / 4_294_967_296.0).ln() * mean as f64
    }

    #[test]
    fn the_table_is_the_logarithm() {
        for (i, &ln) in LN.iter().enumerate() {
            let exact = (i as f64 / 64.0).ln_1p() * (1_u64 << POINT) as f64;
            assert_eq!(ln, exact.round() as u64, "{i}");
        }
    }

    #[test]
    fn the_mean_is_the_one_asked_for() {
        for mean in [4096, 10_007, MEAN, 1 << 30, MAX_MEAN] {
            let count = 1 << 20;
            let sum: u128 = spread(count).map(|r| u128::from(interval(r, mean))).sum();
            let found = sum as f64 / f64::from(count);
            assert!((found / mean as f64 - 1.0).abs() < 0.001, "{found} of {mean}");
        }
    }

    #[test]
    fn every_quantile_is_that_of_the_exponential_distribution() {
        // It falls as `random` rises, so its quantiles are its values.
        for mean in [1, 100, MEAN, MAX_MEAN] {
            let mut last = u64::MAX;
            for random in spread(1 << 17).chain(u32::MAX - 1000..=u32::MAX) {
                let found = interval(random, mean);
                assert!(found <= last, "{random} of {mean}");
                last = found;
                // One byte for the rounding, and the promised error.
                let exact = exact(random, mean) + 1.0;
                let error = (found as f64 - exact).abs();
                assert!(
                    error <= 1.0 + exact * 2e-5 + mean as f64 / (1_u64 << 39) as f64,
                    "{random} of {mean}: {found}, not {exact}"
                );
            }
        }
    }

    #[test]
    fn the_chance_of_a_block_is_the_one_its_weight_assumes() {
        let count = 1 << 20;
        for (size, mean) in [(1, 1), (1, 64), (16, 64), (64, 64), (300, 64), (24, 4096)] {
            let hits = spread(count).filter(|&r| interval(r, mean) <= size).count();
            let found = hits as f64 / f64::from(count);
            assert!((found * weight(size, mean) - 1.0).abs() < 2e-4, "{size} of {mean}: {found}");
        }
    }

    #[test]
    fn the_ends_of_the_scale_are_safe() {
        assert_eq!(interval(u32::MAX, 0), 1);
        assert_eq!(interval(0, 0), 1);
        assert_eq!(interval(u32::MAX, MEAN), 1);
        // 33 ln 2 = 22.873 856…
        assert_eq!(interval(0, MEAN), 11_992_489);
        assert_eq!(interval(0, u64::MAX), interval(0, MAX_MEAN));
        assert!(interval(0, MAX_MEAN) > 22 << 40);
    }

    #[test]
    fn a_weight_is_the_inverse_of_the_chance() {
        assert_eq!(weight(0, MEAN), weight(1, MEAN));
        assert_eq!(weight(100, 0), 1.0);
        assert_eq!(weight(u64::MAX, 1), 1.0);
        assert_eq!(weight(MEAN, MEAN), 1.0 / (1.0 - (-1.0_f64).exp()));
        // mean / size + ½ for small blocks; without exp_m1 it is wrong in the third digit.
        let small = weight(1, MAX_MEAN) / ((1_u64 << 40) as f64 + 0.5);
        assert!((small - 1.0).abs() < 1e-12, "{small}");
    }

    #[test]
    fn blocks_that_are_always_followed_have_no_error() {
        let mut estimate = Estimate::default();
        estimate.add(100, 0);
        estimate.add(0, 0);
        assert_eq!((estimate.bytes, estimate.blocks, estimate.bytes_error()), (100.0, 2.0, 0.0));
        let mut sum = Estimate::default();
        sum.add(MEAN, MEAN);
        sum += estimate;
        let p = 1.0 - (-1.0_f64).exp();
        assert!((sum.bytes - 100.0 - MEAN as f64 / p).abs() < 1e-6);
        assert!((sum.blocks - 2.0 - 1.0 / p).abs() < 1e-12);
        assert!((sum.bytes_error() - MEAN as f64 * (1.0 - p).sqrt() / p).abs() < 1e-6);
    }

    /// Numbers that are always the same (xorshift, Marsaglia 2003).
    struct Numbers(u64);

    impl Numbers {
        fn next(&mut self) -> u32 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 >> 32) as u32
        }
    }

    /// As the kernel side does it.
    fn sampled(blocks: &[u64], mean: u64, numbers: &mut Numbers) -> Estimate {
        let mut estimate = Estimate::default();
        let mut left = interval(numbers.next(), mean);
        for &size in blocks {
            if size < left {
                left -= size;
            } else {
                estimate.add(size, mean);
                left = interval(numbers.next(), mean);
            }
        }
        estimate
    }

    #[test]
    fn the_estimate_is_unbiased_and_knows_its_error() {
        let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
        let blocks: Vec<u64> =
            (0..20_000).map(|_| 1_u64 << (numbers.next() % 16)).map(|size| size + 7).collect();
        let bytes = blocks.iter().sum::<u64>() as f64;
        let (mut sum, mut squares, mut inside) = (Estimate::default(), 0.0, 0);
        let runs = 400;
        for _ in 0..runs {
            let estimate = sampled(&blocks, 64 << 10, &mut numbers);
            let off = (estimate.bytes - bytes) / estimate.bytes_error();
            squares += off * off;
            inside += i32::from(off.abs() < 2.0);
            sum += estimate;
        }
        // One run is off by 2.5 %, so the mean of 400 by 0.13 %.
        assert!((sum.bytes / f64::from(runs) / bytes - 1.0).abs() < 0.004, "{sum:?}");
        let blocks = sum.blocks / f64::from(runs) / blocks.len() as f64;
        assert!((blocks - 1.0).abs() < 0.1, "{blocks}");
        assert!((squares / f64::from(runs) - 1.0).abs() < 0.15, "{squares}");
        assert!((f64::from(inside) / f64::from(runs) - 0.954).abs() < 0.03, "{inside}");
    }

    #[test]
    fn the_kernel_side_computes_the_same() {
        let folder = std::env::temp_dir().join(format!("mw-sample-{}", std::process::id()));
        fs::create_dir_all(folder.join("bpf")).unwrap();
        // What a C library's compiler lacks.
        let types = "typedef unsigned int __u32;\ntypedef unsigned long long __u64;\n";
        fs::write(folder.join("vmlinux.h"), types).unwrap();
        let inline = "#undef __always_inline\n#define __always_inline inline __attribute__((always_inline))\n";
        fs::write(folder.join("bpf/bpf_helpers.h"), inline).unwrap();
        let main = r#"
            #include <stdio.h>
            #include "sample.bpf.h"
            int main(void)
            {
                unsigned int random;
                unsigned long long mean;
                while (scanf("%u %llu", &random, &mean) == 2)
                    printf("%llu\n", sample_interval(random, mean));
                return 0;
            }
        "#;
        fs::write(folder.join("main.c"), main).unwrap();
        let include = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bpf/include");
        let program = folder.join("main");
        let mut cc = Command::new("cc");
        cc.args(["-Wall", "-Werror", "-O1", "-o"]).arg(&program).arg(folder.join("main.c"));
        cc.arg("-I").arg(&folder).arg("-I").arg(include);
        assert!(cc.status().unwrap().success());

        let means = [0, 1, 4096, MEAN, (1 << 33) + 12_345, MAX_MEAN - 1, MAX_MEAN, u64::MAX];
        let mut numbers = Numbers(88_172_645_463_325_252);
        let ends = [0, 1, 2, u32::MAX / 2, u32::MAX - 1, u32::MAX];
        let randoms = ends.into_iter().chain((0..1500).map(|_| numbers.next()));
        let pairs: Vec<(u32, u64)> =
            randoms.flat_map(|random| means.map(|mean| (random, mean))).collect();
        let lines: String = pairs.iter().map(|(r, mean)| format!("{r} {mean}\n")).collect();
        fs::write(folder.join("input"), lines).unwrap();
        let input = fs::File::open(folder.join("input")).unwrap();
        let output = Command::new(&program).stdin(input).output().unwrap();
        fs::remove_dir_all(&folder).unwrap();
        let found: Vec<u64> = output
            .stdout
            .split(|b| *b == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| std::str::from_utf8(line).unwrap().parse().unwrap())
            .collect();
        let expected: Vec<u64> = pairs.iter().map(|&(r, mean)| interval(r, mean)).collect();
        assert_eq!(found, expected);
    }
}
