//! The `sluice` binary: it runs the commands of `cli`, each in a few lines over the library.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use clap::Parser as _;
use nix::unistd::{Gid, Pid, Uid};
use proxy::cli::{Cli, Command, RunDir};
use proxy::config::{self, Diagnostic, Diagnostics, Loaded};
use proxy::control::life::RunOutcome;
use proxy::control::messages::{Request, Response, printable};
use proxy::supervisor::ask::AskError;
use proxy::supervisor::plan::{Finding, Severity};
use proxy::supervisor::{ask, key_log, leftovers, plan};
use proxy::telemetry::{logging, report};
use proxy::{dataplane, demo, supervisor};
use serde_json::json;

/// The exit code for wrong usage, and for a command that is not built yet.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run { config, allow_key_log } => run(&config.config, allow_key_log),
        Command::Check { config, no_files, json } => check(&config.config, no_files, json),
        Command::Plan { config, root, json } => show_plan(&config.config, &root, json),
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
    forbid_dumps();
    // Its warnings are logged.
    let loaded = match config::load(path) {
        Ok(loaded) => loaded,
        Err(errors) => {
            refuse(&errors);
            return ExitCode::FAILURE;
        }
    };
    match supervisor::run(loaded, allow_key_log) {
        Ok(RunOutcome::Clean) => ExitCode::SUCCESS,
        // The error was logged already.
        Ok(RunOutcome::Forced | RunOutcome::NeverReady) => ExitCode::FAILURE,
        Err(error) if error.is_logged() => ExitCode::FAILURE,
        Err(error) => fail(&error.to_string()),
    }
}

/// The configuration would have said how the log looks; without it, a terminal gets a report, and whoever
/// reads lines of the log gets lines of the log.
fn refuse(errors: &Diagnostics) {
    let look = logging::look(None);
    match logging::init("info", look) {
        Ok(_log) if !look.text => errors.iter().for_each(|error| tracing::error!("{error}")),
        _ => print(errors),
    }
}

/// What `check` found.
struct Checked {
    errors: Diagnostics,
    warnings: Diagnostics,
    /// Names that are not here.
    findings: Vec<Finding>,
}

fn check(path: &Path, no_files: bool, as_json: bool) -> ExitCode {
    let (name, checked) = examine(path, no_files);
    let Checked { errors, warnings, findings } = checked;
    let is_valid = errors.is_empty() && findings.is_empty();
    if as_json {
        let diagnostics: Vec<_> = errors.iter().chain(warnings.iter()).map(Diagnostic::json).collect();
        let found =
            json!({ "file": name, "valid": is_valid, "diagnostics": diagnostics, "findings": findings });
        say(&format!("{found:#}\n"));
    } else {
        [&errors, &warnings].into_iter().filter(|some| !some.is_empty()).for_each(print);
        findings.iter().for_each(|finding| eprintln!("sluice: {}: {finding}", name.display()));
        if is_valid {
            say(&format!("{}: valid\n", name.display()));
        }
    }
    if is_valid { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn examine(path: &Path, no_files: bool) -> (PathBuf, Checked) {
    forbid_dumps();
    let failed = |errors| Checked { errors, warnings: Diagnostics::default(), findings: Vec::new() };
    let (name, text) = match config::read_text(path) {
        Ok(read) => read,
        Err(errors) => return (path.to_owned(), failed(errors)),
    };
    if no_files {
        let (errors, warnings) = config::check_text(&name, &text);
        return (name, Checked { errors, warnings, findings: Vec::new() });
    }
    match config::load_text(&name, text) {
        Ok(Loaded { config, warnings, .. }) => {
            let is_wrong = |finding: &Finding| finding.severity == Severity::Fatal && finding.key.is_some();
            let findings = plan::findings(&config).into_iter().filter(is_wrong).collect();
            (name, Checked { errors: Diagnostics::default(), warnings, findings })
        }
        Err(errors) => (name, failed(errors)),
    }
}

fn show_plan(path: &Path, root: &Path, as_json: bool) -> ExitCode {
    forbid_dumps();
    let loaded = match config::read_text(path).and_then(|(name, text)| config::load_text(&name, text)) {
        Ok(loaded) => loaded,
        Err(errors) => {
            print(&errors);
            return ExitCode::FAILURE;
        }
    };
    if !loaded.warnings.is_empty() {
        print(&loaded.warnings);
    }
    let plan = plan::plan(&loaded.config, root);
    if as_json {
        say(&format!("{:#}\n", plan.json));
    } else {
        say(&plan.text);
        if std::env::var_os(key_log::VARIABLE).is_some_and(|name| !name.is_empty()) {
            say(&format!(
                "\n{} is set: `sluice run --allow-key-log` would write the secrets of all TLS connections \
                 there; without that it is ignored\n",
                key_log::VARIABLE
            ));
        }
    }
    if plan.would_start { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A core dump must not hold the private keys that are read next. Where the call fails, no dump was to be had
/// anyway.
fn forbid_dumps() {
    let _ = nix::sys::prctl::set_dumpable(false);
}

fn print(diagnostics: &Diagnostics) {
    eprintln!("{}", diagnostics.render(logging::look(None).color));
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
            say(&printable(&report::render(&status)));
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
            say(&format!("{}\n", printable(&what)));
            ExitCode::SUCCESS
        }
        Ok(Response::Failed(why)) => fail(&printable(&why)),
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
