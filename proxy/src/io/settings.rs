//! How large a worker's ring is, how much memory it receives into, and the bounds of the engine over it.

use std::time::Duration;

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

/// Bytes of a block, for streams that send a lot at a time. With half of it, two loop turns are paid to carry
/// as much as one. Where the proxy is the slowest of all, each turn wakes both peers. That costs 680 ms of
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

/// The engine's bounds. `Default` suits tests and small workers.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Streams at once, connecting and closing ones included; at most 2^24.
    pub streams_max: usize,
    /// Bytes a stream may have received that nobody dropped (whole buffers for loans), before its receive is
    /// cancelled.
    pub receive_high: usize,
    /// Where it is armed again.
    pub receive_low: usize,
    /// The limit while buffers or budget are short; it shrinks as less is free. Resumes at half of it.
    pub receive_pressed: usize,
    /// `writable` while fewer bytes are queued.
    pub write_low: usize,
    /// Bytes handed to one send; below 2^32.
    pub send_bytes_max: usize,
    /// The same while less than a quarter of the buffers are free.
    pub send_bytes_pressed: usize,
    /// Chunks handed to one send; at most 1024 (IOV_MAX).
    pub send_chunks_max: usize,
    /// How long a closed stream may flush before it is reset, unless so many bytes were taken in that time.
    pub close_timeout: Duration,
    /// See `close_timeout`.
    pub close_bytes: u64,
    /// How long a flushed and shut-down stream waits for the peer's end, or for more bytes to discard.
    /// Without this wait, closing would reset a peer that is still sending, and it might never read the last
    /// bytes sent to it.
    pub discard_quiet: Duration,
    /// How long such a stream waits in all.
    pub discard_max: Duration,
    /// Bytes discarded of one stream, at most.
    pub discard_bytes: usize,
    /// How long a closed stream whose peer broke the rules may flush without progress, and how long in all it
    /// waits after that. It holds less meanwhile than a session does for longer: no keys, no future, no
    /// bytes.
    pub refused_max: Duration,
    /// Bytes thrown away of such a peer, at most: as much as a receive window lets it have under way when it
    /// is told (tcp_rmem: 6 MiB).
    pub refused_bytes: usize,
    /// Closed streams that flush or discard at once; the oldest of the peer that has the most gives way.
    pub closings_max: usize,
    /// Task polls in one loop turn.
    pub polls_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            streams_max: 65_536,
            receive_high: 256 << 10,
            receive_low: 128 << 10,
            receive_pressed: 32 << 10,
            write_low: 128 << 10,
            send_bytes_max: 256 << 10,
            send_bytes_pressed: 16 << 10,
            send_chunks_max: 64,
            close_timeout: Duration::from_secs(30),
            close_bytes: 3000,
            discard_quiet: Duration::from_secs(1),
            discard_max: Duration::from_secs(30),
            discard_bytes: 64 << 20,
            refused_max: Duration::from_secs(3),
            refused_bytes: 8 << 20,
            closings_max: 1024,
            polls_max: 4096,
        }
    }
}
