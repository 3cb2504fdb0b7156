//! What the fuzz targets share: where to cut an input.

/// Calls `check` with ways to cut an input of this length, rising positions that end with the length: one
/// that `seed` decides, or, for the highest seeds and an input that is not too long, each that cuts it into
/// two.
pub fn splits(seed: u8, length: usize, mut check: impl FnMut(&[usize])) {
    if seed >= 252 && length <= 64 {
        (0..length).for_each(|cut| check(&[cut, length]));
    }
    check(&cuts(seed, length));
}

/// Positions in `0..=length`, rising, that `seed` decides: a few large pieces, or byte by byte for seeds
/// above 250.
///
/// Byte by byte is left to short inputs, since a head is given to its decoder again as a whole after each
/// piece.
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
