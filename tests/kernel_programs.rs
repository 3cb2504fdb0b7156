//! The eBPF programs in the kernel, without the rest of Sluice. The tests cover verdicts over packets given
//! as bytes, steering of plain listeners, and XDP on interfaces in namespaces that they make.

#[path = "kernel/attach.rs"]
mod attach;
#[path = "kernel/banned.rs"]
mod banned;
#[path = "kernel/connections.rs"]
mod connections;
#[path = "kernel/cookies.rs"]
mod cookies;
#[path = "kernel/frames.rs"]
mod frames;
#[path = "kernel/prefixes.rs"]
mod prefixes;
#[path = "kernel/select.rs"]
mod select;
#[path = "kernel/verdicts.rs"]
mod verdicts;
