//! Code that the fuzz targets share: where to cut an input.

/// Calls `check` with ways to cut an input of this length: rising positions that end with the length. `seed`
/// decides one way. For the highest seeds and a short input, every cut into two pieces comes too.
pub fn splits(seed: u8, length: usize, mut check: impl FnMut(&[usize])) {
    if seed >= 252 && length <= 64 {
        (0..length).for_each(|cut| check(&[cut, length]));
    }
    check(&cuts(seed, length));
}

/// Rising positions in `0..=length` that `seed` decides: a few large pieces, or single bytes for seeds above
/// 250.
///
/// Only short inputs are cut into single bytes, since a decoder reads a whole head again after each piece.
#[must_use]
fn cuts(seed: u8, length: usize) -> Vec<usize> {
    if seed > 250 && length <= 256 {
        return (0..=length).collect();
    }
    let mut state = u32::from(seed).wrapping_mul(0x9e37_79b9) | 1;
    let mut cuts: Vec<usize> = (0..usize::from(seed % 7))
        .map(|_| {
            // xorshift32
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as usize % (length + 1)
        })
        .collect();
    cuts.sort_unstable();
    cuts.push(length);
    cuts
}
