//! SHA-1 states taken further, one or several at once.
//!
//! SHA-1 waits for itself: each round needs the one before it. Where the processor has instructions
//! for it (x86), two states go on over the same blocks in about 1.3 times the time of one, and up to
//! sixteen, or sixteen pairs, over blocks of their own in about the time of six. Elsewhere they take turns,
//! and the crate `sha1` does the work. Nothing is padded.
//!
//! A crate of its own because this is the one place that needs `unsafe`: to say that the processor
//! has the instructions, after asking it.

#[cfg(target_arch = "x86_64")]
mod beside;
#[cfg(target_arch = "x86_64")]
mod each;

/// States that go on at once where the processor can do that.
const LANES: usize = 16;

/// For fewer of them it is not worth it.
const LEAST: usize = 6;

/// How many states [`compress_each`] should be given at a time: more than one only where many together take
/// less time than one after the other.
pub fn lanes() -> usize {
    #[cfg(target_arch = "x86_64")]
    if has_wide() {
        return LANES;
    }
    1
}

/// Takes each state over `blocks`; two at once are the most that pay.
pub fn compress<const N: usize>(mut states: [&mut [u32; 5]; N], blocks: &[[u8; 64]]) {
    #[cfg(target_arch = "x86_64")]
    if has_sha() {
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl") {
            // SAFETY: the processor has what the function is compiled for; SSE2 all have.
            unsafe { beside::compress_by_rotation(states, blocks) };
        } else {
            // SAFETY: as above.
            unsafe { beside::compress(states, blocks) };
        }
        return;
    }
    // What the first has seen is still near when the second comes.
    for blocks in blocks.chunks(256) {
        for state in &mut states {
            sha1::block_api::compress(state, blocks);
        }
    }
}

/// Takes the states in each place over blocks of this place: one state, or two.
///
/// # Panics
/// When there are not as many places as there are slices, or not as many blocks in each slice.
pub fn compress_each<const N: usize>(states: &mut [[[u32; 5]; N]], blocks: &[&[[u8; 64]]]) {
    assert_eq!(states.len(), blocks.len(), "each has blocks of its own");
    let len = blocks.first().map_or(0, |first| first.len());
    assert!(blocks.iter().all(|blocks| blocks.len() == len), "all have as many blocks");
    for (states, blocks) in states.chunks_mut(LANES).zip(blocks.chunks(LANES)) {
        #[cfg(target_arch = "x86_64")]
        if states.len() >= LEAST && has_wide() {
            // SAFETY: the processor has what the function is compiled for.
            unsafe { each::compress(states, blocks) };
            continue;
        }
        for (states, blocks) in states.iter_mut().zip(blocks) {
            compress(states.each_mut(), blocks);
        }
    }
}

/// Whether the processor has what [`beside`] is compiled for, but for the rotations.
#[cfg(target_arch = "x86_64")]
fn has_sha() -> bool {
    is_x86_feature_detected!("sha")
        && is_x86_feature_detected!("ssse3")
        && is_x86_feature_detected!("sse4.1")
}

/// Whether the processor has what [`each`] is compiled for.
#[cfg(target_arch = "x86_64")]
fn has_wide() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw")
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [[u32; 5]; 2] =
        [[0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476, 0xc3d2_e1f0], [1, 2, 3, 4, u32::MAX]];

    fn blocks(count: usize) -> Vec<[u8; 64]> {
        let byte = |at: usize| (at ^ (at >> 6) ^ (at >> 11)) as u8;
        (0..count).map(|block| std::array::from_fn(|at| byte(64 * block + at))).collect()
    }

    /// Every way to do it that this processor has, against the crate `sha1`.
    #[test]
    fn each_way_does_what_the_crate_sha1_does() {
        for count in [0, 1, 2, 5, 64, 300] {
            let blocks = blocks(count);
            let mut expected = STATES;
            for state in &mut expected {
                sha1::block_api::compress(state, &blocks);
            }
            let each = |compress: fn(&mut [u32; 5], &[[u8; 64]])| {
                let mut states = STATES;
                states.iter_mut().for_each(|state| compress(state, &blocks));
                states
            };
            assert_eq!(each(|state, blocks| compress([state], blocks)), expected, "{count}");
            let [mut first, mut second] = STATES;
            compress([&mut first, &mut second], &blocks);
            assert_eq!([first, second], expected, "{count}, both");
            #[cfg(target_arch = "x86_64")]
            if has_sha() {
                // SAFETY: the processor has what the function is compiled for.
                let sha = each(|state, blocks| unsafe { beside::compress([state], blocks) });
                assert_eq!(sha, expected, "{count}, without rotations");
                let [mut first, mut second] = STATES;
                // SAFETY: as above.
                unsafe { beside::compress([&mut first, &mut second], &blocks) };
                assert_eq!([first, second], expected, "{count}, both, without rotations");
            }
        }
    }

    #[test]
    fn each_place_has_blocks_of_its_own() {
        let all = blocks(40);
        for count in [1, LEAST - 1, LEAST, LANES, LANES + 1, 3 * LANES - 1] {
            let mut pairs: Vec<[[u32; 5]; 2]> = (0..count as u32)
                .map(|place| STATES.map(|state| state.map(|w| w ^ place)))
                .collect();
            let mut alone: Vec<[[u32; 5]; 1]> = pairs.iter().map(|[_, second]| [*second]).collect();
            let mut expected = pairs.clone();
            let slices: Vec<&[[u8; 64]]> =
                (0..count).map(|place| &all[place % 30..place % 30 + 7]).collect();
            for (states, blocks) in expected.iter_mut().zip(&slices) {
                for state in states {
                    sha1::block_api::compress(state, blocks);
                }
            }
            compress_each(&mut pairs, &slices);
            assert_eq!(pairs, expected, "{count}, two");
            compress_each(&mut alone, &slices);
            assert!(alone.iter().zip(&expected).all(|([one], [_, two])| one == two), "{count}");
        }
    }
}
