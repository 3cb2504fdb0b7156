//! `sluice ban`, `unban` and `bans`, answered by the supervisor: refusals with their reasons, and receipts.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use tracing::{info, warn};

use super::estate::Estate;
use crate::config::model::BAN_FOR;
use crate::config::units::show_duration;
use crate::control::bans::{Ban, BanSource};
use crate::control::messages::Response;
use crate::kernel;
use crate::time::Time;

/// Bans a source and ends its connections.
pub fn ban(estate: &mut Estate, source: BanSource, asked: Option<Duration>, now: Time) -> Response {
    match try_ban(estate, source, asked, now) {
        Ok(receipt) => {
            info!("{}", receipt.replace('\n', "; "));
            Response::Done(receipt)
        }
        Err(why) => Response::Failed(format!("{source} is not banned: {why}")),
    }
}

fn try_ban(
    estate: &mut Estate,
    source: BanSource,
    asked: Option<Duration>,
    now: Time,
) -> Result<String, String> {
    let guard = &estate.config.guard;
    let (dry_run, duration) = (guard.dry_run, asked.unwrap_or(guard.ban_for));
    if !BAN_FOR.contains(&duration) {
        let (least, most) = (show_duration(*BAN_FOR.start()), show_duration(*BAN_FOR.end()));
        return Err(format!("a ban holds for {least} to {most}"));
    }
    let network = source.network();
    if let Some(allowed) = guard.allow.iter().find(|allowed| allowed.contains(&network)) {
        return Err(format!("{allowed} is on the allow list (guard.allow), which goes before every ban"));
    }
    let mut notes = warnings(estate, network);
    let addresses: Vec<_> = estate.addresses().collect();
    let before = estate.guard_mut()?.ban(source, now + duration, now).map_err(|error| error.to_string())?;

    let mut receipt = format!("{source} is banned for {}", show_duration(duration));
    if let Some(before) = before {
        receipt.push_str(&format!(
            " from now on, instead of the {} that were left",
            show_left(before.since(now))
        ));
    }
    if dry_run {
        notes.push("guard.dry_run: its packets are counted as banned and pass".to_owned());
    } else {
        match kernel::cut(network, &addresses) {
            Ok(0) => {}
            Ok(count) => receipt.push_str(&format!("; {}", ended(count))),
            Err(error) => {
                warn!("connections of {source} end by their timeouts, not at once: {error}");
                notes.push(format!("its connections end by their timeouts, not at once: {error}"));
            }
        }
    }
    for (interface, reason) in estate.unguarded() {
        notes.push(format!("packets on {interface} are not judged: {reason}"));
    }
    notes.iter().for_each(|note| receipt.push_str(&format!("\nnote: {note}")));
    Ok(receipt)
}

/// Effects of a ban that its operator may not have meant.
fn warnings(estate: &Estate, network: IpNet) -> Vec<String> {
    let mut notes = Vec::new();
    let is_own = |address: IpAddr| network.contains(&address.to_canonical());
    if network.addr().is_loopback() || is_own(IpAddr::V6(std::net::Ipv6Addr::LOCALHOST)) {
        notes.push("this is the loopback: what connects from this host itself is banned".to_owned());
    } else if let Some(own) = estate.addresses().find(|own| !own.ip().is_unspecified() && is_own(own.ip())) {
        notes.push(format!(
            "{own} is a listener of this proxy: what connects from this host itself may be banned"
        ));
    }
    if let Some(allowed) = estate.config.guard.allow.iter().find(|allowed| network.contains(*allowed)) {
        notes.push(format!("{allowed} in it is on the allow list (guard.allow) and stays served"));
    }
    notes
}

/// Lifts a ban.
pub fn unban(estate: &mut Estate, source: BanSource, now: Time) -> Response {
    let lifted =
        estate.guard_maps().and_then(|guard| guard.unban(source, now).map_err(|error| error.to_string()));
    match lifted {
        Ok(Some(end)) => {
            let receipt =
                format!("the ban of {source} is lifted, {} before its end", show_left(end.since(now)));
            info!("{receipt}");
            Response::Done(receipt)
        }
        Ok(None) => Response::Failed(format!("{source} is not banned")),
        Err(why) => Response::Failed(why),
    }
}

/// The bans that hold.
pub fn list(estate: &mut Estate, now: Time) -> Response {
    match estate.guard_mut() {
        Ok(guard) => {
            let left = |end: Time| u64::try_from(end.since(now).as_millis()).unwrap_or(u64::MAX);
            Response::Bans(
                guard.bans(now).map(|(address, end)| Ban { address, remaining_ms: left(end) }).collect(),
            )
        }
        Err(why) => Response::Failed(why),
    }
}

fn ended(connections: usize) -> String {
    if connections == 1 {
        "a connection of it was ended".to_owned()
    } else {
        format!("{connections} connections of it were ended")
    }
}

/// In whole seconds, rounded up.
fn show_left(left: Duration) -> String {
    show_duration(Duration::from_secs(left.as_secs() + u64::from(left.subsec_nanos() > 0)))
}
