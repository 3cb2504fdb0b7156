//! The cases of `micro`: what they do is in the modules, one operation at a time and without a clock.

mod http;
mod parts;
mod session;

/// Does so many operations.
pub type Runner = Box<dyn FnMut(u64)>;

/// One operation to measure.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// As `--only` takes it.
    pub name: &'static str,
    /// What one operation is.
    pub what: &'static str,
    /// Prepares everything that is not to be measured.
    pub make: fn() -> Runner,
}

/// Every case, in the order of a request's way.
#[must_use]
pub fn all() -> Vec<Case> {
    [http::CASES, parts::CASES, session::CASES].concat()
}

/// Loops without a call through a pointer for each operation.
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

    /// Every case checks what it does by itself; a small number of operations also crosses its edges.
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
