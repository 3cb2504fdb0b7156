//! What the programs counted, summed over CPUs, under the labels of metrics and `/status`.

use std::collections::BTreeMap;

use aya::maps::PerCpuArray;
use proxy_common::guard::{GUARD_DRY_RUN, Verdict};
use proxy_common::steer::{Fallback, POLICY_HASH, POLICY_LEAST_LOADED, POLICY_NUMA_LOCAL};

use super::KernelError;
use super::loader::Programs;
use crate::control::now;
use crate::control::status::{GuardStatus, SteeringStatus};

const VERDICTS: &str = "GUARD_VERDICTS";
const SELECTED: &str = "STEER_SELECTED";
const FALLBACKS: &str = "STEER_FALLBACKS";
const MIGRATED: &str = "STEER_MIGRATED";

/// Flows by slot, and flows left to the kernel by reason label.
pub type Steered = (BTreeMap<u32, u64>, BTreeMap<String, u64>);

impl Programs {
    /// Packets by verdict reason label, summed over CPUs. Every reason is there, also those at 0.
    pub fn verdicts(&self) -> Result<BTreeMap<String, u64>, KernelError> {
        let sums = self.sums(VERDICTS)?;
        Ok(Verdict::ALL.iter().zip(sums).map(|(verdict, sum)| (verdict.label().to_owned(), sum)).collect())
    }

    /// Flows by slot (those above 0), and flows left to the kernel by reason label (all).
    pub fn steered(&self) -> Result<Steered, KernelError> {
        let selected = (0..).zip(self.sums(SELECTED)?).filter(|(_, sum)| *sum != 0).collect();
        let fallbacks = self.sums(FALLBACKS)?;
        let fallbacks = Fallback::ALL
            .iter()
            .zip(fallbacks)
            .map(|(reason, sum)| (reason.label().to_owned(), sum))
            .collect();
        Ok((selected, fallbacks))
    }

    /// Of the flows given to slots: those whose former listening socket went away before they were accepted.
    pub fn migrated(&self) -> Result<u64, KernelError> {
        Ok(self.sums(MIGRATED)?.into_iter().sum())
    }

    /// Everything about the guard, read from the kernel.
    pub fn guard_status(&self) -> Result<GuardStatus, KernelError> {
        let counted = self.counted()?;
        Ok(GuardStatus {
            connections: self.counts_connections().then(|| counted.opened.saturating_sub(counted.closed)),
            uncounted: counted.uncounted,
            interfaces: self
                .attached()
                .map(|(interface, mode)| (interface.to_owned(), mode.label().to_owned()))
                .collect(),
            dry_run: self.guard_config()?.flags & GUARD_DRY_RUN != 0,
            verdicts: self.verdicts()?,
            bans: self.bans(now()).count() as u64,
        })
    }

    /// Everything about steering, read from the kernel.
    pub fn steering_status(&self) -> Result<SteeringStatus, KernelError> {
        let policy = match self.steer_config()?.policy {
            POLICY_HASH => "hash",
            POLICY_LEAST_LOADED => "least-loaded",
            POLICY_NUMA_LOCAL => "numa-local",
            _ => "kernel-hash",
        };
        let (selected, fallback) = self.steered()?;
        Ok(SteeringStatus { policy: policy.to_owned(), selected, fallback })
    }

    /// Each entry of a per-CPU array, summed.
    fn sums(&self, name: &'static str) -> Result<Vec<u64>, KernelError> {
        let array = self.map::<PerCpuArray<_, u64>>(name)?;
        array
            .iter()
            .map(|values| {
                values.map(|values| values.iter().fold(0, |sum: u64, value| sum.wrapping_add(*value)))
            })
            .collect::<Result<_, _>>()
            .map_err(|error| KernelError::map(name, error))
    }
}
