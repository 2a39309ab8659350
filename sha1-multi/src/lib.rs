//! Several SHA-1 states taken further at once.
//!
//! SHA-1 waits for itself: each round needs the one before it. Where the processor has instructions
//! for it (x86), two states go on over the same blocks in about 1.25 times the time of one, and up to
//! sixteen over blocks of their own in about the time of five. Elsewhere they take turns. Nothing is padded.
//!
//! A crate of its own because this is the one place that needs `unsafe`: to say that the processor
//! has the instructions, after asking it. The tests of mtq's `hash` are its tests.

#[cfg(target_arch = "x86_64")]
mod both;
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

/// Takes both states over `blocks`.
pub fn compress_both(states: [&mut [u32; 5]; 2], blocks: &[[u8; 64]]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("sha")
        && is_x86_feature_detected!("ssse3")
        && is_x86_feature_detected!("sse4.1")
    {
        // SAFETY: the processor has what the function is compiled for; SSE2 all have.
        unsafe { both::compress(states, blocks) };
        return;
    }
    let [first, second] = states;
    // What the first has seen is still near when the second comes.
    for blocks in blocks.chunks(256) {
        sha1::block_api::compress(first, blocks);
        sha1::block_api::compress(second, blocks);
    }
}

/// Takes each state over blocks of its own.
///
/// # Panics
/// When there are not as many states as there are slices, or not as many blocks in each slice.
pub fn compress_each(states: &mut [[u32; 5]], blocks: &[&[[u8; 64]]]) {
    assert_eq!(states.len(), blocks.len(), "each state has blocks of its own");
    let len = blocks.first().map_or(0, |first| first.len());
    assert!(blocks.iter().all(|blocks| blocks.len() == len), "all have as many blocks");
    for (states, blocks) in states.chunks_mut(LANES).zip(blocks.chunks(LANES)) {
        #[cfg(target_arch = "x86_64")]
        if states.len() >= LEAST && has_wide() {
            // SAFETY: the processor has what the function is compiled for.
            unsafe { each::compress(states, blocks) };
            continue;
        }
        for (state, blocks) in states.iter_mut().zip(blocks) {
            sha1::block_api::compress(state, blocks);
        }
    }
}

/// Whether the processor has what [`each`] is compiled for.
#[cfg(target_arch = "x86_64")]
fn has_wide() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw")
}
