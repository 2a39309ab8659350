//! Two states over the same blocks, with the SHA instructions: they share the message schedule and wait
//! side by side.

use std::arch::x86_64::*;

/// The first four words of a state, the first of them highest.
#[inline]
#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
fn abcd(state: &[u32; 5]) -> __m128i {
    let [a, b, c, d, _] = state.map(u32::cast_signed);
    _mm_set_epi32(a, b, c, d)
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

/// Four rounds of both states with the words `$w`: what was in `$y` ends as their ABCD, and `$x`
/// holds the E of the next.
macro_rules! rounds {
    ($x:ident, $y:ident, $w:expr, $kind:literal) => {
        $y.0 = _mm_sha1rnds4_epu32($x.0, _mm_sha1nexte_epu32($y.0, $w), $kind);
        $y.1 = _mm_sha1rnds4_epu32($x.1, _mm_sha1nexte_epu32($y.1, $w), $kind);
    };
}

/// The same with the words that follow from the four before.
macro_rules! scheduled {
    ($x:ident, $y:ident, [$w0:ident, $w1:ident, $w2:ident, $w3:ident] => $w4:ident, $kind:literal) => {
        $w4 = _mm_sha1msg2_epu32(_mm_xor_si128(_mm_sha1msg1_epu32($w0, $w1), $w2), $w3);
        rounds!($x, $y, $w4, $kind);
    };
}

/// Takes both states over `blocks`.
#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
pub fn compress(states: [&mut [u32; 5]; 2], blocks: &[[u8; 64]]) {
    let [first, second] = states;
    let e = |state: &[u32; 5]| _mm_set_epi32(state[4].cast_signed(), 0, 0, 0);
    let mut abcd_both = (abcd(first), abcd(second));
    let mut e_both = (e(first), e(second));
    for block in blocks {
        let (quarters, _) = block.as_chunks::<16>();
        let mut w0 = words(&quarters[0]);
        let mut w1 = words(&quarters[1]);
        let mut w2 = words(&quarters[2]);
        let mut w3 = words(&quarters[3]);
        let mut w4;
        let mut h0 = abcd_both;
        let e0 = (_mm_add_epi32(e_both.0, w0), _mm_add_epi32(e_both.1, w0));
        let mut h1 = (_mm_sha1rnds4_epu32(h0.0, e0.0, 0), _mm_sha1rnds4_epu32(h0.1, e0.1, 0));
        rounds!(h1, h0, w1, 0);
        rounds!(h0, h1, w2, 0);
        rounds!(h1, h0, w3, 0);
        scheduled!(h0, h1, [w0, w1, w2, w3] => w4, 0);
        scheduled!(h1, h0, [w1, w2, w3, w4] => w0, 1);
        scheduled!(h0, h1, [w2, w3, w4, w0] => w1, 1);
        scheduled!(h1, h0, [w3, w4, w0, w1] => w2, 1);
        scheduled!(h0, h1, [w4, w0, w1, w2] => w3, 1);
        scheduled!(h1, h0, [w0, w1, w2, w3] => w4, 1);
        scheduled!(h0, h1, [w1, w2, w3, w4] => w0, 2);
        scheduled!(h1, h0, [w2, w3, w4, w0] => w1, 2);
        scheduled!(h0, h1, [w3, w4, w0, w1] => w2, 2);
        scheduled!(h1, h0, [w4, w0, w1, w2] => w3, 2);
        scheduled!(h0, h1, [w0, w1, w2, w3] => w4, 2);
        scheduled!(h1, h0, [w1, w2, w3, w4] => w0, 3);
        scheduled!(h0, h1, [w2, w3, w4, w0] => w1, 3);
        scheduled!(h1, h0, [w3, w4, w0, w1] => w2, 3);
        scheduled!(h0, h1, [w4, w0, w1, w2] => w3, 3);
        scheduled!(h1, h0, [w0, w1, w2, w3] => w4, 3);
        abcd_both = (_mm_add_epi32(abcd_both.0, h0.0), _mm_add_epi32(abcd_both.1, h0.1));
        e_both = (_mm_sha1nexte_epu32(h1.0, e_both.0), _mm_sha1nexte_epu32(h1.1, e_both.1));
    }
    *first = state(abcd_both.0, e_both.0);
    *second = state(abcd_both.1, e_both.1);
}
