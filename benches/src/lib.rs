//! What the side-by-side measurements need besides the proxies.

pub mod load;
pub mod relay;

/// Lets the calling thread run on this CPU alone.
///
/// # Errors
/// EINVAL for a CPU that is not there or not allowed.
pub fn pin(cpu: usize) -> std::io::Result<()> {
    let mut set = nix::sched::CpuSet::new();
    set.set(cpu)?;
    Ok(nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)?)
}
