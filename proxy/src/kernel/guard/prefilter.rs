//! The guard's prefilter in the kernel: a bitmap. It tells for nearly every packet that neither a list nor a
//! ban names its source. `filter` computes the bits.

use std::collections::BTreeSet;

use aya::maps::{Array, MapData};
use proxy_common::filter::{CHUNK_WORDS, CHUNKS, Chunk};

use super::filter::Filter;
use crate::kernel::error::KernelError;
use crate::kernel::object::Object;

const FILTER: &str = "GUARD_FILTER";
const CLEAR: Chunk = [0; CHUNK_WORDS];

/// The bitmap, with a copy of its contents.
pub(super) struct Prefilter {
    map: Array<MapData, Chunk>,
    present: Filter,
}

impl Prefilter {
    pub(super) fn take(object: &mut Object) -> Result<Self, KernelError> {
        Ok(Self { map: object.take_map(FILTER)?, present: Filter::default() })
    }

    /// Reads the bits of an adopted map. `classes` are the classes in use.
    pub(super) fn adopt(&mut self, classes: u32) -> Result<(), KernelError> {
        self.present = Filter { classes, ..Filter::default() };
        for number in 0..CHUNKS {
            let chunk = self.map.get(&number, 0).map_err(|error| KernelError::map(FILTER, error))?;
            if chunk != CLEAR {
                self.present.chunks.insert(number, Box::new(chunk));
            }
        }
        Ok(())
    }

    /// The bits that are set in the kernel.
    pub(super) fn present(&self) -> &Filter {
        &self.present
    }

    /// Sets bits.
    pub(super) fn add(&mut self, bits: &Filter) -> Result<(), KernelError> {
        for (number, added) in &bits.chunks {
            let known = self.present.chunks.get(number).map_or(CLEAR, |known| **known);
            let mut chunk = known;
            chunk.iter_mut().zip(added.iter()).for_each(|(word, added)| *word |= added);
            if chunk != known {
                self.map.set(*number, chunk, 0).map_err(|error| KernelError::map(FILTER, error))?;
                self.present.chunks.insert(*number, Box::new(chunk));
            }
        }
        self.present.classes |= bits.classes;
        Ok(())
    }

    /// Makes the bitmap equal to `wanted`. The copy follows chunk by chunk, so it is right after an error
    /// too.
    pub(super) fn write(&mut self, wanted: &Filter) -> Result<(), KernelError> {
        let numbers: BTreeSet<u32> =
            self.present.chunks.keys().chain(wanted.chunks.keys()).copied().collect();
        for number in numbers {
            let chunk = wanted.chunks.get(&number);
            if self.present.chunks.get(&number) != chunk {
                self.map
                    .set(number, chunk.map_or(&CLEAR, |chunk| chunk), 0)
                    .map_err(|error| KernelError::map(FILTER, error))?;
                match chunk {
                    Some(chunk) => self.present.chunks.insert(number, chunk.clone()),
                    None => self.present.chunks.remove(&number),
                };
            }
        }
        self.present.classes = wanted.classes;
        Ok(())
    }
}
