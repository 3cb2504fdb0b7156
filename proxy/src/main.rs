//! The `sluice` binary: it runs the commands of `cli`, each in a few lines over the library.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::SystemTime;

use clap::Parser as _;
use nix::unistd::{Gid, Pid, Uid};
use proxy::cli::{Cli, Command, Config, RunDir};
use proxy::config::{self, Diagnostics, Loaded};
use proxy::control::life::RunOutcome;
use proxy::control::messages::{Request, Response};
use proxy::kernel::links;
use proxy::supervisor::ask::AskError;
use proxy::supervisor::{ask, key_log, leftovers, plan};
use proxy::telemetry::report;
use proxy::{dataplane, demo, supervisor};

/// The exit code for wrong usage, and for a command that is not built yet.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run { config, allow_key_log } => run(&config.config, allow_key_log),
        Command::Check(Config { config }) => check(&config),
        Command::Plan { config, root } => show_plan(&config.config, &root),
        Command::Status { run_dir, json } => status(&run_dir.run_dir, json),
        Command::Stop(RunDir { run_dir }) => order(&run_dir, &Request::Stop),
        Command::Drain(RunDir { run_dir }) => order(&run_dir, &Request::Drain),
        Command::Reload(RunDir { run_dir }) => order(&run_dir, &Request::Reload),
        Command::Upgrade(_) => not_built("upgrade"),
        Command::Ban { address, duration, run_dir } => {
            let for_ms = duration.map(|duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX));
            order(&run_dir.run_dir, &Request::Ban { address, for_ms })
        }
        Command::Unban { address, run_dir } => order(&run_dir.run_dir, &Request::Unban { address }),
        Command::Bans { run_dir, json } => bans(&run_dir.run_dir, json),
        Command::Top(_) => not_built("top"),
        Command::DataPlane { parent, uid, gid, sandbox } => {
            let identity = uid.zip(gid).map(|(uid, gid)| (Uid::from_raw(uid), Gid::from_raw(gid)));
            dataplane::run(Pid::from_raw(parent), identity, sandbox)
        }
        Command::DemoUpstream { address } => match demo::run(address) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&format!("demo upstream on {address}: {error}")),
        },
        Command::DemoCertificate { folder } => match demo::certificate(&folder, SystemTime::now()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&format!("demo certificate in {}: {error}", folder.display())),
        },
    }
}

fn run(path: &Path, allow_key_log: bool) -> ExitCode {
    let loaded = match load(path, false) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    match supervisor::run(loaded, allow_key_log) {
        Ok(RunOutcome::Clean) => ExitCode::SUCCESS,
        // The error was logged already.
        Ok(RunOutcome::Forced | RunOutcome::NeverReady) => ExitCode::FAILURE,
        Err(error) => fail(&error.to_string()),
    }
}

fn check(path: &Path) -> ExitCode {
    match load(path, true) {
        Ok(loaded) => {
            // Whether an interface is there depends on the host that will run it; what is there can be told.
            for name in &loaded.config.guard.interfaces {
                if let Some(reason) = links::without_ethernet(name) {
                    return fail(&format!("{}: guard.interfaces: {name}: {reason}", path.display()));
                }
            }
            say(&format!("{}: valid\n", path.display()));
            ExitCode::SUCCESS
        }
        Err(code) => code,
    }
}

fn show_plan(path: &Path, root: &Path) -> ExitCode {
    let loaded = match load(path, true) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    match plan::plan(&loaded.config, root) {
        Ok(text) => {
            say(&text);
            if std::env::var_os(key_log::VARIABLE).is_some_and(|name| !name.is_empty()) {
                say(&format!(
                    "\n{} is set: `sluice run --allow-key-log` would write the secrets of all TLS \
                     connections there; without that it is ignored\n",
                    key_log::VARIABLE
                ));
            }
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error.to_string()),
    }
}

/// Loads a configuration and prints its errors, and its warnings if that is wanted.
fn load(path: &Path, prints_warnings: bool) -> Result<Loaded, ExitCode> {
    // A core dump must not hold the private keys that are read now. Where the call fails, no dump was to be
    // had anyway.
    let _ = nix::sys::prctl::set_dumpable(false);
    let render = |diagnostics: &Diagnostics| diagnostics.render(std::io::stderr().is_terminal());
    match config::load(path) {
        Ok(loaded) => {
            // A supervisor logs them.
            if !loaded.warnings.is_empty() && prints_warnings {
                eprintln!("{}", render(&loaded.warnings));
            }
            Ok(loaded)
        }
        Err(diagnostics) => {
            eprintln!("{}", render(&diagnostics));
            Err(ExitCode::FAILURE)
        }
    }
}

fn status(run_dir: &Path, json: bool) -> ExitCode {
    match ask::ask(run_dir, &Request::Status) {
        Ok(Response::Status(status)) if json => match serde_json::to_string_pretty(&status) {
            Ok(text) => {
                say(&format!("{text}\n"));
                ExitCode::SUCCESS
            }
            Err(error) => fail(&error.to_string()),
        },
        Ok(Response::Status(status)) => {
            say(&report::render(&status));
            ExitCode::SUCCESS
        }
        Ok(Response::Failed(why)) => fail(&why),
        Ok(Response::Done(what)) => fail(&format!("unexpected answer: {what}")),
        Ok(Response::Begun { .. } | Response::Bans(_)) => fail("unexpected answer"),
        Err(error @ AskError::Absent(_)) => match leftovers::describe(run_dir) {
            Some(left) => fail(&format!("{error}\n{left}")),
            None => fail(&error.to_string()),
        },
        Err(error) => fail(&error.to_string()),
    }
}

/// Sends an order; its receipt comes when it is done.
fn order(run_dir: &Path, request: &Request) -> ExitCode {
    match ask::ask(run_dir, request) {
        Ok(Response::Done(what)) => {
            say(&format!("{what}\n"));
            ExitCode::SUCCESS
        }
        Ok(Response::Failed(why)) => fail(&why),
        Ok(Response::Begun { .. } | Response::Status(_) | Response::Bans(_)) => fail("unexpected answer"),
        // No proxy is there to stop, but a killed one may have left something to remove.
        Err(error @ AskError::Absent(_)) if *request == Request::Stop => match leftovers::remove(run_dir) {
            Some(Ok(what)) => {
                say(&format!("{what}\n"));
                ExitCode::SUCCESS
            }
            Some(Err(why)) => fail(&why),
            None => fail(&error.to_string()),
        },
        Err(error) => fail(&error.to_string()),
    }
}

fn bans(run_dir: &Path, json: bool) -> ExitCode {
    match ask::ask(run_dir, &Request::Bans) {
        Ok(Response::Bans(bans)) if json => match serde_json::to_string_pretty(&bans) {
            Ok(text) => {
                say(&format!("{text}\n"));
                ExitCode::SUCCESS
            }
            Err(error) => fail(&error.to_string()),
        },
        Ok(Response::Bans(bans)) => {
            say(&report::render_bans(&bans));
            ExitCode::SUCCESS
        }
        Ok(Response::Failed(why)) => fail(&why),
        Ok(Response::Begun { .. } | Response::Status(_) | Response::Done(_)) => fail("unexpected answer"),
        Err(error) => fail(&error.to_string()),
    }
}

fn not_built(command: &str) -> ExitCode {
    eprintln!("sluice: `{command}` is not built yet");
    ExitCode::from(EXIT_USAGE)
}

fn fail(why: &str) -> ExitCode {
    eprintln!("sluice: {why}");
    ExitCode::FAILURE
}

/// A reader that has seen enough (`sluice status | head`) is no error.
fn say(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}
