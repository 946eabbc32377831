/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Sampling by bytes: after how many bytes the next sample is taken. The
 * same arithmetic, explained and tested, is in src/leak/sample.rs.
 *
 * Count allocated bytes down from sample_interval(); a block is followed when
 * the count would fall to 0 or below in it, and the next interval then starts
 * after the block:
 *
 *	if (size < left)
 *		left -= size;
 *	else
 *		left = sample_interval(bpf_get_prandom_u32(), mean); // follow it
 */
#ifndef MW_SAMPLE_BPF_H
#define MW_SAMPLE_BPF_H

#include "vmlinux.h"
#include <bpf/bpf_helpers.h>

#define SAMPLE_MAX_MEAN (1ULL << 40)

/* ln(1 + i/64) * 2^40, rounded; the last is ln 2 */
static const __u64 sample_ln[65] = {
	/* clang-format off */
	0, 17047033376, 33833796510, 50368117529, 66657476617, 82709026332,
	98529610469, 114125781579, 129503817259, 144669735329, 159629307968, 174388074903,
	188951355727, 203324261410, 217511705065, 231518412033, 245348929333, 259007634518,
	272498743996, 285826320846, 298994282159, 312006405950, 324866337668, 337577596325,
	350143580273, 362567572664, 374852746592, 387002169964, 399018810095, 410905538059,
	422665132805, 434300285060, 445813601022, 457207605864, 468484747058, 479647397532,
	490697858666, 501638363140, 512471077639, 523198105434, 533821488828, 544343211492,
	554765200687, 565089329383, 575317418281, 585451237738, 595492509607, 605442908990,
	615304065922, 625077566966, 634764956750, 644367739428, 653887380089, 663325306087,
	672682908337, 681961542539, 691162530356, 700287160547, 709336690050, 718312345019,
	727215321822, 736046788000, 744807883181, 753499719969, 762123384786,
	/* clang-format on */
};

/* 1 + floor(mean * -ln((random + 1/2) / 2^32)); mean in bytes, 0: every byte */
static __always_inline __u64 sample_interval(__u32 random, __u64 mean)
{
	/* (random + 1/2) * 2: below 2^33, and never 0. */
	__u64 mantissa = (__u64)random << 1 | 1;
	__u64 below, step, bend, part, ln, nats;
	__u32 shift = 0, index;

	if (mean > SAMPLE_MAX_MEAN)
		mean = SAMPLE_MAX_MEAN;
	/*
	 * Shifted until its leading one is bit 32. By hand: clang 14 crashes on
	 * __builtin_clzll for BPF.
	 */
	for (__u32 by = 16; by; by >>= 1) {
		if (mantissa >> (33 - by))
			continue;
		mantissa <<= by;
		shift += by;
	}
	if (!(mantissa >> 32)) {
		mantissa <<= 1;
		shift++;
	}
	index = mantissa >> 26 & 63;
	below = mantissa & ((1 << 26) - 1);
	/* A line between the entries, and the bend of a parabola. */
	step = sample_ln[index + 1] - sample_ln[index];
	bend = ((step >> 10) * (step >> 10)) >> 21;
	part = (below * ((1 << 26) - below)) >> 26;
	ln = sample_ln[index] + ((step * below) >> 26) + ((bend * part) >> 26);
	nats = ((__u64)shift + 1) * sample_ln[64] - ln;
	/* The product has up to 85 bits; half of the digits at a time. */
	return ((mean * (nats >> 22) + ((mean * (nats & ((1 << 22) - 1))) >> 22)) >> 18) + 1;
}

#endif /* MW_SAMPLE_BPF_H */
