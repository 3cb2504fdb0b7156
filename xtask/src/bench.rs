//! `cargo xtask bench`: CPU time per request of Sluice beside Debian's nginx, in one run. One worker each, pinned to the same core,
//! upstream keep-alive on, logs off; client and origin share the other core. Rounds interleave the two, so that a slow moment of the
//! machine falls on both. The figure is CPU time from /proc over whole rounds: what holds on a small noisy machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::machine::{self, Package};

const PEERS: &[Package] = &[
    Package::new("nginx", &["sh", "-c", "command -v nginx || test -x /usr/sbin/nginx"]),
    Package::new("wrk", &["sh", "-c", "command -v wrk"]),
];

const PROXY_CPU: usize = 0;
const LOAD_CPU: usize = 1;
const ORIGIN: u16 = 19_000;
const NGINX: u16 = 19_001;
const SLUICE: u16 = 19_002;
const SLUICE_ADMIN: u16 = 19_003;

/// A proxy under measurement.
struct Peer {
    name: &'static str,
    port: u16,
    child: Child,
}

/// Children that end with us.
struct Stage {
    folder: PathBuf,
    children: Vec<Child>,
}

impl Drop for Stage {
    fn drop(&mut self) {
        for child in &mut self.children {
            terminate(child);
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        terminate(&mut self.child);
    }
}

fn terminate(child: &mut Child) {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id().cast_signed()), nix::sys::signal::Signal::SIGTERM);
    let give_up = Instant::now() + Duration::from_secs(5);
    while Instant::now() < give_up {
        if matches!(child.try_wait(), Ok(Some(_))) {
            return;
        }
        thread::sleep(Duration::from_millis(20));
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// One round's outcome.
struct Round {
    requests: u64,
    cpu: Duration,
    wall: Duration,
}

impl Round {
    fn micros_per_request(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.requests.max(1) as f64
    }

    fn rate(&self) -> f64 {
        self.requests as f64 / self.wall.as_secs_f64()
    }
}

pub(crate) fn bench(rounds: usize, seconds: u64, connections: &[usize]) -> Result<(), String> {
    let sluice = machine::build_sluice()?;
    machine::ensure(PEERS)?;
    let folder = std::env::temp_dir().join(format!("sluice-bench-{}", std::process::id()));
    fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut stage = Stage { folder: folder.clone(), children: Vec::new() };
    stage.children.push(nginx(&folder, "origin", LOAD_CPU, &origin_conf())?);
    let peers = [
        Peer { name: "nginx", port: NGINX, child: nginx(&folder, "nginx", PROXY_CPU, &proxy_conf())? },
        Peer { name: "sluice", port: SLUICE, child: start_sluice(&sluice, &folder)? },
    ];
    for peer in &peers {
        reachable(peer.port).map_err(|error| format!("{}: {error}", peer.name))?;
    }
    println!(
        "one worker each on CPU {PROXY_CPU}; wrk and origin (nginx) on CPU {LOAD_CPU}; {seconds} s a round, {rounds} rounds"
    );
    println!("{:>11}  {:>8}  {:>22}  {:>12}", "connections", "proxy", "CPU µs/request", "requests/s");
    for &count in connections {
        let mut micros = [Vec::new(), Vec::new()];
        let mut rates = [Vec::new(), Vec::new()];
        for peer in &peers {
            load(peer, count, 1)?; // warm: pools filled, caches hot
        }
        for round in 0..rounds {
            // The order alternates too.
            for index in if round % 2 == 0 { [0, 1] } else { [1, 0] } {
                let outcome = load(&peers[index], count, seconds)?;
                micros[index].push(outcome.micros_per_request());
                rates[index].push(outcome.rate());
            }
        }
        for index in [0, 1] {
            let (median, low, high) = spread(&mut micros[index]);
            let (rate, _, _) = spread(&mut rates[index]);
            let shown = format!("{median:.2} ({low:.2}–{high:.2})");
            println!("{count:>11}  {:>8}  {shown:>22}  {rate:>12.0}", peers[index].name);
        }
        println!("{count:>11}     ratio  sluice / nginx = {:.3}", spread(&mut micros[1]).0 / spread(&mut micros[0]).0);
    }
    Ok(())
}

fn spread(values: &mut [f64]) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    (values[values.len() / 2], values[0], values[values.len() - 1])
}

fn load(peer: &Peer, connections: usize, seconds: u64) -> Result<Round, String> {
    let before = cpu_of_tree(peer.child.id())?;
    let started = Instant::now();
    let output = Command::new("taskset")
        .args(["-c", &LOAD_CPU.to_string(), "wrk", "-t1", &format!("-c{connections}"), &format!("-d{seconds}s")])
        .arg(format!("http://127.0.0.1:{}/", peer.port))
        .output()
        .map_err(|error| format!("wrk: {error}"))?;
    let wall = started.elapsed();
    let cpu = cpu_of_tree(peer.child.id())?.saturating_sub(before);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if text.contains("Non-2xx") || text.contains("Socket errors") {
        return Err(format!("{}: wrk saw errors:\n{text}", peer.name));
    }
    let requests = text
        .lines()
        .find_map(|line| line.trim().split_once(" requests in").and_then(|(count, _)| count.parse().ok()))
        .ok_or_else(|| format!("wrk said:\n{text}{}", String::from_utf8_lossy(&output.stderr)))?;
    Ok(Round { requests, cpu, wall })
}

/// User and system time of a process and its children, living ones. The kernel's tick is 100 Hz to user space.
fn cpu_of_tree(pid: u32) -> Result<Duration, String> {
    let mut total = cpu_of(pid)?;
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    for child in children.split_whitespace().filter_map(|child| child.parse().ok()) {
        total += cpu_of_tree(child)?;
    }
    Ok(total)
}

fn cpu_of(pid: u32) -> Result<Duration, String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).map_err(|error| format!("process {pid}: {error}"))?;
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 = after_name.split_whitespace().skip(11).take(2).filter_map(|word| word.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(ticks * 10))
}

fn reachable(port: u16) -> Result<(), String> {
    let give_up = Instant::now() + Duration::from_secs(10);
    loop {
        if machine::succeeds(&["curl", "-fsS", "-m", "2", &format!("http://127.0.0.1:{port}/")]) {
            return Ok(());
        }
        if Instant::now() > give_up {
            return Err(format!("port {port} does not answer"));
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn nginx(folder: &Path, name: &str, cpu: usize, http: &str) -> Result<Child, String> {
    let prefix = folder.join(name);
    fs::create_dir_all(prefix.join("temp")).map_err(|error| format!("{}: {error}", prefix.display()))?;
    let conf = format!(
        "daemon off; pid {0}/pid; error_log {0}/error.log crit; worker_processes 1; worker_cpu_affinity {1};\n\
         worker_rlimit_nofile 16384; events {{ worker_connections 8192; }}\n\
         http {{ access_log off; client_body_temp_path {0}/temp/b; proxy_temp_path {0}/temp/p; fastcgi_temp_path {0}/temp/f;\n\
         uwsgi_temp_path {0}/temp/u; scgi_temp_path {0}/temp/s; keepalive_requests 1000000000; tcp_nodelay on;\n{http} }}\n",
        prefix.display(),
        if cpu == 0 { "01" } else { "10" },
    );
    let file = prefix.join("nginx.conf");
    fs::write(&file, conf).map_err(|error| format!("{}: {error}", file.display()))?;
    quiet(Command::new("/usr/sbin/nginx").arg("-p").arg(&prefix).arg("-c").arg(&file).arg("-e").arg(prefix.join("error.log")))
}

fn origin_conf() -> String {
    format!("server {{ listen 127.0.0.1:{ORIGIN}; location / {{ return 200 \"hello from the origin\\n\"; }} }}")
}

fn proxy_conf() -> String {
    format!(
        "upstream origin {{ server 127.0.0.1:{ORIGIN}; keepalive 1024; keepalive_requests 1000000000; }}\n\
         server {{ listen 127.0.0.1:{NGINX}; location / {{ proxy_pass http://origin; proxy_http_version 1.1;\n\
         proxy_set_header Connection \"\"; proxy_set_header Host $host; proxy_set_header X-Forwarded-For $remote_addr;\n\
         proxy_set_header X-Forwarded-Proto $scheme; proxy_set_header X-Forwarded-Host $host; }} }}"
    )
}

fn start_sluice(binary: &Path, folder: &Path) -> Result<Child, String> {
    let file = folder.join("sluice.toml");
    let conf = format!(
        "[process]\nrun_dir = \"{0}/run\"\n[workers]\ncount = 1\ncpus = \"{PROXY_CPU}\"\n\
         [[listener]]\nname = \"http\"\naddress = \"127.0.0.1:{SLUICE}\"\n\
         [[route]]\npath_prefix = \"/\"\nupstream = \"origin\"\n\
         [[upstream]]\nname = \"origin\"\nendpoints = [\"127.0.0.1:{ORIGIN}\"]\n[upstream.pool]\nmax_idle = 1024\n\
         [admin]\naddress = \"127.0.0.1:{SLUICE_ADMIN}\"\n[log]\nlevel = \"warn\"\n",
        folder.display()
    );
    fs::write(&file, conf).map_err(|error| format!("{}: {error}", file.display()))?;
    quiet(Command::new(binary).args(["run", "--config"]).arg(&file))
}

fn quiet(command: &mut Command) -> Result<Child, String> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().map_err(|error| format!("{command:?}: {error}"))
}
