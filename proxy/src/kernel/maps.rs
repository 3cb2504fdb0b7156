//! The two kinds of map that every program has: a single value, and counters with one part for each CPU.

use std::hash::{BuildHasher, RandomState};

use aya::Pod;
use aya::maps::{Array, MapData, PerCpuArray};

use super::error::KernelError;
use super::object::Object;

/// An array of one entry.
pub(super) struct Single<T: Pod> {
    name: &'static str,
    map: Array<MapData, T>,
}

impl<T: Pod> Single<T> {
    /// Takes the map of this name out of the object.
    pub(super) fn take(object: &mut Object, name: &'static str) -> Result<Self, KernelError> {
        Ok(Self { name, map: object.take_map(name)? })
    }

    /// Reads the value from the kernel.
    pub(super) fn read(&self) -> Result<T, KernelError> {
        self.map.get(&0, 0).map_err(|error| KernelError::map(self.name, error))
    }

    /// Replaces the value.
    pub(super) fn write(&mut self, value: T) -> Result<(), KernelError> {
        self.map.set(0, value, 0).map_err(|error| KernelError::map(self.name, error))
    }
}

/// An array of counters. Each CPU adds to a part of its own.
pub(super) struct Counters {
    name: &'static str,
    map: PerCpuArray<MapData, u64>,
}

impl Counters {
    /// Takes the map of this name out of the object.
    pub(super) fn take(object: &mut Object, name: &'static str) -> Result<Self, KernelError> {
        Ok(Self { name, map: object.take_map(name)? })
    }

    /// Every counter, summed over the CPUs.
    pub(super) fn sums(&self) -> Result<Vec<u64>, KernelError> {
        let sum = |values: aya::maps::PerCpuValues<u64>| {
            values.iter().fold(0, |sum: u64, value| sum.wrapping_add(*value))
        };
        let sums: Result<_, _> = self.map.iter().map(|values| values.map(sum)).collect();
        sums.map_err(|error| KernelError::map(self.name, error))
    }
}

/// Random numbers that choose a source's places in a table. Without knowing them, an attacker cannot aim at
/// another source's place.
pub(super) fn random_seeds() -> [u64; 2] {
    let random = RandomState::new();
    [0, 1].map(|row: usize| random.hash_one(row))
}
