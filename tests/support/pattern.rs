//! Bodies of any length that cost little to make. Every page differs, so a lost, repeated or moved piece
//! changes the checksum.

use std::io::{self, Read, Write};

use sha2::{Digest, Sha256};

const PAGE: usize = 4096;
const CHUNK: usize = 64 * PAGE;

/// A reader of `length` bytes. It repeats a pseudo-random page and stamps each repetition with its number.
#[derive(Debug)]
pub struct Pattern {
    left: u64,
    page: u64,
    chunk: Vec<u8>,
    at: usize,
}

impl Pattern {
    /// The body of this length; the same length always gives the same bytes.
    #[must_use]
    pub fn new(length: u64) -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut chunk = Vec::with_capacity(CHUNK);
        while chunk.len() < CHUNK {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            chunk.extend_from_slice(&state.to_le_bytes());
        }
        Self { left: length, page: 0, at: chunk.len(), chunk }
    }

    fn refill(&mut self) {
        for page in self.chunk.chunks_exact_mut(PAGE) {
            page[..8].copy_from_slice(&self.page.to_le_bytes());
            self.page += 1;
        }
        self.at = 0;
    }
}

impl Read for Pattern {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Ok(0);
        }
        if self.at == self.chunk.len() {
            self.refill();
        }
        let left = usize::try_from(self.left).unwrap_or(usize::MAX);
        let count = buffer.len().min(self.chunk.len() - self.at).min(left);
        buffer[..count].copy_from_slice(&self.chunk[self.at..self.at + count]);
        self.at += count;
        self.left -= count as u64;
        Ok(count)
    }
}

/// The length and SHA-256 of all bytes that a reader gives.
pub fn digest(mut reader: impl Read) -> io::Result<(u64, String)> {
    let mut sum = Sum::default();
    let mut buffer = vec![0; CHUNK];
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok((sum.length, sum.hex())),
            count => sum.write_all(&buffer[..count])?,
        }
    }
}

/// The SHA-256 of the pattern of this length.
#[must_use]
pub fn expected(length: u64) -> String {
    digest(Pattern::new(length)).expect("a pattern can be read").1
}

/// A running checksum.
#[derive(Clone, Default)]
pub struct Sum {
    hash: Sha256,
    /// Bytes so far.
    pub length: u64,
}

impl Sum {
    /// The checksum, in hexadecimal.
    #[must_use]
    pub fn hex(self) -> String {
        self.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl Write for Sum {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hash.update(bytes);
        self.length += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl std::fmt::Debug for Sum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sum").field("length", &self.length).finish_non_exhaustive()
    }
}
