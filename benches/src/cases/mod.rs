//! The cases of `micro`. The modules hold the operations; each runs one operation at a time, without a clock.

mod http;
mod parts;
mod session;

/// Runs the given number of operations.
pub type Runner = Box<dyn FnMut(u64)>;

/// One operation to measure.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// The name for `--only`.
    pub name: &'static str,
    /// A description of one operation.
    pub what: &'static str,
    /// Prepares the case, outside of the measured time.
    pub make: fn() -> Runner,
}

/// Every case, in the order in which a request meets them.
#[must_use]
pub fn all() -> Vec<Case> {
    [http::CASES, parts::CASES, session::CASES].concat()
}

/// A loop that calls no function pointer for each operation.
fn each(mut operation: impl FnMut() + 'static) -> Runner {
    Box::new(move |operations| {
        for _ in 0..operations {
            operation();
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every case checks its own results. A small number of operations also covers its boundaries.
    #[test]
    fn every_case_runs() {
        for case in all() {
            (case.make)()(3_000);
        }
    }

    #[test]
    fn names_are_unique_and_fit_a_command_line() {
        let mut names: Vec<&str> = all().iter().map(|case| case.name).collect();
        assert!(
            names.iter().all(|name| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'))
        );
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
