//! How large a worker's ring is, and how much memory it receives into.

/// `[ring]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    /// Submission queue entries, a power of two.
    pub entries: u32,
    /// Provided buffers, a power of two, at most 32768.
    pub buffers: u16,
    /// Bytes each.
    pub buffer_size: u32,
}

/// Bytes of a block, what a stream receives into that sends a lot at a time. With half of it two loop turns
/// are paid for what one carries, and where the proxy is the slowest of all each wakes both peers: 680 ms of
/// CPU time per GiB instead of 320, and 830 with a quarter of it.
pub const BLOCK_BYTES: usize = 256 << 10;

/// Ids of buffers are 16 bits wide, and small ones may take half of them.
const BLOCKS_MAX: usize = 4096;

impl Ring {
    /// Blocks beside so many bytes of small buffers: as many bytes, rounded down to a power of two of them.
    #[must_use]
    pub fn blocks_beside(small_bytes: usize) -> usize {
        (small_bytes / BLOCK_BYTES).min(BLOCKS_MAX).checked_ilog2().map_or(0, |bits| 1 << bits)
    }

    /// Bytes of all buffers of a worker, blocks included, at most: pages are touched when first used.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let small = usize::from(self.buffers) * self.buffer_size as usize;
        small + Self::blocks_beside(small) * BLOCK_BYTES
    }
}
