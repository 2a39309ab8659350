//! Up to sixteen states over blocks of their own, with AVX-512: every word of a state or of a block is a
//! lane of a register, and a round is done for all of them at once. States that go over the same blocks share
//! the message schedule.

use std::arch::x86_64::*;
use std::array;

use super::LANES;

/// Takes the states in each place over the blocks in that place: as many for all, and no more places than there
/// are lanes.
#[target_feature(enable = "avx512f,avx512bw")]
pub fn compress<const N: usize>(states: &mut [[[u32; 5]; N]], blocks: &[&[[u8; 64]]]) {
    let len = blocks.first().map_or(0, |first| first.len());
    // Lanes that are not needed do again what the first does.
    let lanes: [&[[u8; 64]]; LANES] =
        array::from_fn(|lane| *blocks.get(lane).unwrap_or(&blocks[0]));
    let mut now = [[_mm512_setzero_si512(); 5]; N];
    for (which, words) in now.iter_mut().enumerate() {
        for (word, all) in words.iter_mut().enumerate() {
            let of = |lane: usize| states.get(lane).map_or(0, |states| states[which][word]);
            *all = gather(array::from_fn(of));
        }
    }
    for block in 0..len {
        let mut w = words(&lanes, block);
        let mut all = now;
        // Four kinds of rounds, twenty of each. What differs is the truth table of a function, and a constant.
        macro_rules! round {
            ($number:expr, $table:literal, $constant:expr) => {
                if $number >= 16 {
                    let [x, y] = [w[($number + 13) % 16], w[($number + 8) % 16]];
                    let [z, first] = [w[($number + 2) % 16], w[$number % 16]];
                    let all = _mm512_xor_si512(_mm512_ternarylogic_epi32::<0x96>(x, y, z), first);
                    w[$number % 16] = _mm512_rol_epi32::<1>(all);
                }
                let word = _mm512_add_epi32(w[$number % 16], _mm512_set1_epi32($constant));
                for state in &mut all {
                    // What needs the round before this one comes last.
                    let [a, b, c, d, e] = *state;
                    let f = _mm512_ternarylogic_epi32::<$table>(b, c, d);
                    let sum = _mm512_add_epi32(_mm512_add_epi32(e, word), f);
                    let next = _mm512_add_epi32(_mm512_rol_epi32::<5>(a), sum);
                    *state = [next, a, _mm512_rol_epi32::<30>(b), c, d];
                }
            };
        }
        macro_rules! rounds {
            ($from:literal, $table:literal, $constant:expr) => {
                rounds!(@ $from, $table, $constant, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19);
            };
            (@ $from:literal, $table:literal, $constant:expr, $($number:literal)*) => {
                $(round!($from + $number, $table, $constant);)*
            };
        }
        rounds!(0, 0xca, 0x5a82_7999);
        rounds!(20, 0x96, 0x6ed9_eba1);
        rounds!(40, 0xe8, 0x8f1b_bcdc_u32.cast_signed());
        rounds!(60, 0x96, 0xca62_c1d6_u32.cast_signed());
        for (words, more) in now.iter_mut().zip(all) {
            for (all, more) in words.iter_mut().zip(more) {
                *all = _mm512_add_epi32(*all, more);
            }
        }
    }
    for (which, words) in now.into_iter().enumerate() {
        for (word, all) in words.into_iter().enumerate() {
            for (states, value) in states.iter_mut().zip(scatter(all)) {
                states[which][word] = value;
            }
        }
    }
}

/// The sixteen words of a block of each lane: the first register has the first word of all.
// No closures from here on: they would have to be inlined to be compiled for these instructions.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn words(lanes: &[&[[u8; 64]]; LANES], block: usize) -> [__m512i; LANES] {
    let order = _mm_set_epi32(0x0c0d_0e0f, 0x0809_0a0b, 0x0405_0607, 0x0001_0203);
    let order = _mm512_broadcast_i32x4(order);
    let mut rows = [_mm512_setzero_si512(); LANES];
    for (row, blocks) in rows.iter_mut().zip(lanes) {
        *row = _mm512_shuffle_epi8(load(&blocks[block]), order);
    }
    // Rows and columns change places: words, then pairs of words, then quarters and halves of registers.
    for at in [0, 2, 4, 6, 8, 10, 12, 14] {
        let [p, q] = [rows[at], rows[at + 1]];
        rows[at] = _mm512_unpacklo_epi32(p, q);
        rows[at + 1] = _mm512_unpackhi_epi32(p, q);
    }
    for at in [0, 4, 8, 12] {
        let [p, q, r, s] = [rows[at], rows[at + 1], rows[at + 2], rows[at + 3]];
        rows[at] = _mm512_unpacklo_epi64(p, r);
        rows[at + 1] = _mm512_unpackhi_epi64(p, r);
        rows[at + 2] = _mm512_unpacklo_epi64(q, s);
        rows[at + 3] = _mm512_unpackhi_epi64(q, s);
    }
    for at in [0, 1, 2, 3, 8, 9, 10, 11] {
        let [p, q] = [rows[at], rows[at + 4]];
        rows[at] = _mm512_shuffle_i32x4::<0x88>(p, q);
        rows[at + 4] = _mm512_shuffle_i32x4::<0xdd>(p, q);
    }
    for at in [0, 1, 2, 3, 4, 5, 6, 7] {
        let [p, q] = [rows[at], rows[at + 8]];
        rows[at] = _mm512_shuffle_i32x4::<0x88>(p, q);
        rows[at + 8] = _mm512_shuffle_i32x4::<0xdd>(p, q);
    }
    rows
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(block: &[u8; 64]) -> __m512i {
    let (words, _) = block.as_chunks::<8>();
    let [a, b, c, d] = [words[0], words[1], words[2], words[3]];
    let [e, f, g, h] = [words[4], words[5], words[6], words[7]];
    _mm512_set_epi64(
        i64::from_le_bytes(h),
        i64::from_le_bytes(g),
        i64::from_le_bytes(f),
        i64::from_le_bytes(e),
        i64::from_le_bytes(d),
        i64::from_le_bytes(c),
        i64::from_le_bytes(b),
        i64::from_le_bytes(a),
    )
}

#[inline]
#[target_feature(enable = "avx512f")]
fn gather(lanes: [u32; LANES]) -> __m512i {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = lanes.map(u32::cast_signed);
    _mm512_set_epi32(p, o, n, m, l, k, j, i, h, g, f, e, d, c, b, a)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn scatter(mut all: __m512i) -> [u32; LANES] {
    let mut words = [0; LANES];
    for word in &mut words {
        *word = _mm512_cvtsi512_si32(all).cast_unsigned();
        all = _mm512_alignr_epi32::<1>(all, all);
    }
    words
}
