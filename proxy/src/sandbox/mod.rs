//! The confinement of the data plane, beside its user: what is left to code that an attacker runs in it.
//!
//! Four layers of the kernel, each of which may be missing on a host: an empty root (chroot(2)), no access
//! to files (Landlock), few system calls (seccomp(2)), and no destinations but endpoints (eBPF). The
//! supervisor finds them and decides by `process.sandbox`; the data plane takes the first three as it is
//! told to, or does not start. Restrictions of the rings (`io::ring`) belong to the third, since a ring would
//! make the calls that the filter forbids. The fourth is the supervisor's to take (`kernel::destinations`).

pub mod calls;
mod filter;
mod landlock;
mod raw;
pub mod root;

use std::fmt;
use std::io;
use std::str::FromStr;

/// `process.sandbox`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sandbox {
    /// Every layer that this host has.
    Auto,
    /// All layers, or no start.
    Require,
    /// None.
    Off,
}

/// One layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// An empty folder as the root of its file system.
    Root,
    /// Landlock: nothing of any file system, no ports of its choice, no signals to others.
    Files,
    /// seccomp: the system calls of `calls`.
    Calls,
    /// Programs of the supervisor: connections to endpoints of upstreams alone.
    Destinations,
}

impl Layer {
    /// In the order in which the data plane takes them; the last one is taken from outside.
    pub const ALL: [Self; 4] = [Self::Root, Self::Files, Self::Calls, Self::Destinations];

    /// For people.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Root => "empty root",
            Self::Files => "Landlock",
            Self::Calls => "seccomp",
            Self::Destinations => "destinations",
        }
    }

    /// The cost of its absence.
    #[must_use]
    pub const fn cost(self) -> &'static str {
        match self {
            Self::Root => "code that an attacker runs in the data plane sees the host's files",
            Self::Files => {
                "code that an attacker runs in the data plane is kept from files only by its user and the \
                 other layers"
            }
            Self::Calls => {
                "code that an attacker runs in the data plane can start programs and make every system call \
                 that its user may make"
            }
            Self::Destinations => {
                "code that an attacker runs in the data plane connects to every address that this host \
                 reaches by TCP"
            }
        }
    }

    /// Whether this process and this kernel have it. Of the destinations it says only whether the other
    /// layers are there that they build on.
    ///
    /// # Errors
    /// The reason why not, with advice.
    pub fn find(self) -> Result<(), String> {
        match self {
            Self::Root => root::find(),
            Self::Files => landlock::find(),
            Self::Calls => calls::find(),
            // The programs know the process, and not a child that it would start. They judge connects, and
            // not the packets of a UDP socket that it would make.
            Self::Destinations => calls::find().map_err(|_| "they need seccomp".to_owned()),
        }
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Files => "files",
            Self::Calls => "calls",
            Self::Destinations => "destinations",
        }
    }
}

/// A layer that this host lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lack {
    /// Which.
    pub layer: Layer,
    /// Why, with advice.
    pub reason: String,
}

impl Lack {
    /// What is missing and what that costs, for people.
    #[must_use]
    pub fn remark(&self) -> String {
        format!("process.sandbox: {self}: {}", self.layer.cost())
    }
}

impl fmt::Display for Lack {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.layer.label(), self.reason)
    }
}

/// A selection of layers. On the data plane's command line: their words with commas between.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layers([bool; Layer::ALL.len()]);

impl Layers {
    /// The layers that this host has, if any are wanted, and those that it lacks.
    #[must_use]
    pub fn find(sandbox: Sandbox) -> (Self, Vec<Lack>) {
        let (mut layers, mut lacks) = (Self::default(), Vec::new());
        if sandbox != Sandbox::Off {
            for layer in Layer::ALL {
                match layer.find() {
                    Ok(()) => layers.0[layer as usize] = true,
                    Err(reason) => lacks.push(Lack { layer, reason }),
                }
            }
        }
        (layers, lacks)
    }

    /// Whether a layer is among them.
    #[must_use]
    pub const fn has(self, layer: Layer) -> bool {
        self.0[layer as usize]
    }

    /// Takes one out of the selection.
    pub const fn remove(&mut self, layer: Layer) {
        self.0[layer as usize] = false;
    }

    /// Their names, for people.
    #[must_use]
    pub fn labels(self) -> Vec<String> {
        Layer::ALL
            .into_iter()
            .filter(|layer| self.has(*layer))
            .map(|layer| layer.label().to_owned())
            .collect()
    }

    /// Takes a layer if it is among these.
    ///
    /// # Errors
    /// When the kernel refuses it; the process must not go on then.
    pub fn take(self, layer: Layer) -> Result<(), LayerError> {
        if !self.has(layer) {
            return Ok(());
        }
        let taken = match layer {
            Layer::Root => root::enter(),
            Layer::Files => landlock::restrict(),
            Layer::Calls => calls::restrict(),
            // The supervisor's programs judge this process already.
            Layer::Destinations => Ok(()),
        };
        taken.map_err(|reason| LayerError { layer, reason })
    }
}

impl fmt::Display for Layers {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<&str> =
            Layer::ALL.into_iter().filter(|layer| self.has(*layer)).map(Layer::word).collect();
        formatter.write_str(&words.join(","))
    }
}

impl FromStr for Layers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut layers = Self::default();
        for word in text.split(',').filter(|word| !word.is_empty()) {
            let known = Layer::ALL.into_iter().find(|layer| layer.word() == word);
            let layer = known.ok_or_else(|| format!("no such layer: {word}"))?;
            layers.0[layer as usize] = true;
        }
        Ok(layers)
    }
}

/// A layer that was found, and that the kernel refuses all the same.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}; process.sandbox = \"off\" starts without it", layer.label())]
pub struct LayerError {
    layer: Layer,
    reason: io::Error,
}

/// The advice that an operator gets with a death by SIGSYS.
pub const HINT: &str = "it made a system call that process.sandbox forbids, as hostile code would; the \
                        kernel's log names the call (type=1326); please report it";

/// Standard input, output and error stay; a supervisor passes the channel as the first.
const FIRST_OTHER: libc::c_uint = 3;

/// Closes every descriptor above standard error. The supervisor's own close at exec, but it may have
/// inherited others, from a shell or a service manager, and a library may open one without that flag.
///
/// # Errors
/// The error of close_range(2); a kernel since 5.9 gives none.
pub fn close_inherited() -> io::Result<()> {
    raw::close_from(FIRST_OTHER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_read_as_they_are_written() {
        for (layers, text) in [
            (Layers([false; 4]), ""),
            (Layers([true, false, true, false]), "root,calls"),
            (Layers([true; 4]), "root,files,calls,destinations"),
        ] {
            assert_eq!(layers.to_string(), text);
            assert_eq!(text.parse(), Ok(layers));
        }
        assert_eq!("root,net".parse::<Layers>(), Err("no such layer: net".to_owned()));
    }

    #[test]
    fn off_looks_for_nothing_and_lacks_nothing() {
        assert_eq!(Layers::find(Sandbox::Off), (Layers::default(), Vec::new()));
        let (layers, lacks) = Layers::find(Sandbox::Auto);
        for layer in Layer::ALL {
            assert_ne!(layers.has(layer), lacks.iter().any(|lack| lack.layer == layer), "{layer:?}");
        }
    }
}
