//! One or two states over the same blocks, with the SHA instructions: two share the message schedule and
//! wait side by side.
//!
//! The rounds' instruction keeps one port of a core busy, and so do the instructions for the schedule. Where
//! vectors can be rotated, the schedule is made without them, in 0.82 of the time for one state and for two.

use std::arch::x86_64::*;

/// The first four words of a state, the first of them highest.
#[inline]
#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
fn abcd(state: &[u32; 5]) -> __m128i {
    let [a, b, c, d, _] = state.map(u32::cast_signed);
    _mm_set_epi32(a, b, c, d)
}

/// The last word, in the highest place.
#[inline]
#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
fn e(state: &[u32; 5]) -> __m128i {
    _mm_set_epi32(state[4].cast_signed(), 0, 0, 0)
}

#[inline]
#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
fn state(abcd: __m128i, e: __m128i) -> [u32; 5] {
    [
        _mm_extract_epi32(abcd, 3).cast_unsigned(),
        _mm_extract_epi32(abcd, 2).cast_unsigned(),
        _mm_extract_epi32(abcd, 1).cast_unsigned(),
        _mm_extract_epi32(abcd, 0).cast_unsigned(),
        _mm_extract_epi32(e, 3).cast_unsigned(),
    ]
}

/// Four words of a block, the first of them highest.
#[inline]
#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
fn words(quarter: &[u8; 16]) -> __m128i {
    let bytes = u128::from_le_bytes(*quarter);
    let order = _mm_set_epi64x(0x0001_0203_0405_0607, 0x0809_0a0b_0c0d_0e0f);
    // The casts cut the number in two.
    _mm_shuffle_epi8(_mm_set_epi64x((bytes >> 64) as i64, bytes as i64), order)
}

/// The words of the schedule at `at`, four at a time, from those before them.
#[inline]
#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
fn scheduled(w: &[__m128i; 20], at: usize) -> __m128i {
    let early = _mm_sha1msg1_epu32(w[at - 4], w[at - 3]);
    _mm_sha1msg2_epu32(_mm_xor_si128(early, w[at - 2]), w[at - 1])
}

/// The same without the instructions for it.
#[inline]
#[target_feature(enable = "sha,sse2,ssse3,sse4.1,avx512f,avx512vl")]
fn scheduled_by_rotation(w: &[__m128i; 20], at: usize) -> __m128i {
    const XOR: i32 = 0x96;
    if at >= 8 {
        // Each word is its sixth, 16th, 28th and 32nd before: none of the same four.
        let sixth = _mm_alignr_epi8::<8>(w[at - 2], w[at - 1]);
        let rest = _mm_ternarylogic_epi32::<XOR>(w[at - 4], w[at - 7], w[at - 8]);
        return _mm_rol_epi32::<2>(_mm_xor_si128(rest, sixth));
    }
    // Its third, eighth, 14th and 16th before: the third before the last of four is the first of them.
    let [third, fourteenth] =
        [_mm_bslli_si128::<4>(w[at - 1]), _mm_alignr_epi8::<8>(w[at - 4], w[at - 3])];
    let rest = _mm_ternarylogic_epi32::<XOR>(w[at - 2], fourteenth, w[at - 4]);
    let four = _mm_rol_epi32::<1>(_mm_xor_si128(rest, third));
    _mm_xor_si128(four, _mm_rol_epi32::<1>(_mm_bsrli_si128::<12>(four)))
}

/// Declares a function that takes states over blocks, with the instructions `$features`, the words of the
/// schedule after the first sixteen by `$scheduled`.
macro_rules! compressor {
    ($name:ident, $features:literal, $scheduled:ident) => {
        /// Takes each state over `blocks`.
        #[target_feature(enable = $features)]
        pub fn $name<const N: usize>(states: [&mut [u32; 5]; N], blocks: &[[u8; 64]]) {
            let mut abcds = [_mm_setzero_si128(); N];
            let mut es = [_mm_setzero_si128(); N];
            for i in 0..N {
                (abcds[i], es[i]) = (abcd(states[i]), e(states[i]));
            }
            for block in blocks {
                let (quarters, _) = block.as_chunks::<16>();
                let mut w = [_mm_setzero_si128(); 20];
                // Before four rounds `$x` has the ABCD, and `$y` that of four rounds before, which has the E;
                // what was in `$y` ends as the next ABCD.
                let (mut x, mut y) = (abcds, [_mm_setzero_si128(); N]);
                w[0] = words(&quarters[0]);
                for i in 0..N {
                    y[i] = _mm_sha1rnds4_epu32(x[i], _mm_add_epi32(es[i], w[0]), 0);
                }
                macro_rules! rounds {
                    ($x:ident, $y:ident, $at:literal) => {
                        w[$at] =
                            if $at < 4 { words(&quarters[$at & 3]) } else { $scheduled(&w, $at) };
                        for i in 0..N {
                            let e = _mm_sha1nexte_epu32($y[i], w[$at]);
                            $y[i] = _mm_sha1rnds4_epu32($x[i], e, $at / 5);
                        }
                    };
                }
                rounds!(y, x, 1);
                rounds!(x, y, 2);
                rounds!(y, x, 3);
                rounds!(x, y, 4);
                rounds!(y, x, 5);
                rounds!(x, y, 6);
                rounds!(y, x, 7);
                rounds!(x, y, 8);
                rounds!(y, x, 9);
                rounds!(x, y, 10);
                rounds!(y, x, 11);
                rounds!(x, y, 12);
                rounds!(y, x, 13);
                rounds!(x, y, 14);
                rounds!(y, x, 15);
                rounds!(x, y, 16);
                rounds!(y, x, 17);
                rounds!(x, y, 18);
                rounds!(y, x, 19);
                for i in 0..N {
                    abcds[i] = _mm_add_epi32(abcds[i], x[i]);
                    es[i] = _mm_sha1nexte_epu32(y[i], es[i]);
                }
            }
            for i in 0..N {
                *states[i] = state(abcds[i], es[i]);
            }
        }
    };
}

compressor!(compress, "sha,sse2,ssse3,sse4.1", scheduled);
compressor!(compress_by_rotation, "sha,sse2,ssse3,sse4.1,avx512f,avx512vl", scheduled_by_rotation);
