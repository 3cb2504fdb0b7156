//! Rules about system calls, and their translation into a filter (seccomp(2), classic BPF). The kernel finds
//! by itself which calls are allowed whatever their arguments, and runs no filter for those.

use libc::{BPF_ABS, BPF_ALU, BPF_AND, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W};

/// What becomes of a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is made.
    Allow,
    /// It fails with this error.
    Fail(i32),
    /// The process is killed by SIGSYS.
    Kill,
}

impl Verdict {
    pub(super) const fn value(self) -> u32 {
        match self {
            Self::Allow => libc::SECCOMP_RET_ALLOW,
            Self::Fail(errno) => libc::SECCOMP_RET_ERRNO | (errno as u32 & libc::SECCOMP_RET_DATA),
            Self::Kill => libc::SECCOMP_RET_KILL_PROCESS,
        }
    }
}

/// A condition on one half of an argument. The kernel looks at the low half alone of an int.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Check {
    offset: u32,
    mask: u32,
    value: u32,
}

/// The argument has this value.
pub(super) const fn is(argument: u8, value: u32) -> Check {
    Check { offset: low_half(argument), mask: u32::MAX, value }
}

/// The argument has none of these bits.
pub(super) const fn has_no(argument: u8, bits: u32) -> Check {
    Check { offset: low_half(argument), mask: bits, value: 0 }
}

/// The argument has all of these bits.
pub(super) const fn has_all(argument: u8, bits: u32) -> Check {
    Check { offset: low_half(argument), mask: bits, value: bits }
}

/// The argument is a null pointer.
pub(super) const fn is_null(argument: u8) -> [Check; 2] {
    let low = low_half(argument);
    [Check { offset: low, mask: u32::MAX, value: 0 }, Check { offset: low + 4, mask: u32::MAX, value: 0 }]
}

/// A rule about one call.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    call: libc::c_long,
    /// The call is allowed if every check of one of these holds.
    cases: Vec<Vec<Check>>,
    otherwise: Verdict,
}

impl Rule {
    /// Which call it is about.
    #[cfg(test)]
    pub(super) const fn call(&self) -> libc::c_long {
        self.call
    }
}

/// The call is allowed.
pub(super) fn allow(call: libc::c_long) -> Rule {
    always(call, Verdict::Allow)
}

/// The call always comes out like this.
pub(super) fn always(call: libc::c_long, verdict: Verdict) -> Rule {
    Rule { call, cases: Vec::new(), otherwise: verdict }
}

/// The call is allowed in these cases.
pub(super) fn only(call: libc::c_long, cases: Vec<Vec<Check>>, otherwise: Verdict) -> Rule {
    Rule { call, cases, otherwise }
}

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
/// On the little-endian machines that Sluice runs on; the high half follows.
const fn low_half(argument: u8) -> u32 {
    16 + 8 * argument as u32
}

/// Numbers from here on are of x32, a second table of calls on x86-64.
const X32: u32 = 0x4000_0000;

const fn statement(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

const fn jump(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code: (BPF_JMP | BPF_K | code) as u16, jt, jf, k }
}

const fn load(offset: u32) -> libc::sock_filter {
    statement(BPF_LD | BPF_W | BPF_ABS, offset)
}

const fn end(verdict: Verdict) -> libc::sock_filter {
    statement(BPF_RET | BPF_K, verdict.value())
}

/// The filter: calls of another architecture, and calls without a rule, kill.
pub(super) fn compile(architecture: u32, rules: &[Rule]) -> Vec<libc::sock_filter> {
    let mut program = vec![
        load(ARCHITECTURE),
        jump(BPF_JEQ, architecture, 1, 0),
        end(Verdict::Kill),
        load(NUMBER),
        jump(BPF_JGE, X32, 0, 1),
        end(Verdict::Kill),
    ];
    // Rules with checks come first: the kernel runs the filter for those alone.
    let (checked, constant): (Vec<_>, Vec<_>) = rules.iter().partition(|rule| !rule.cases.is_empty());
    for rule in checked.into_iter().chain(constant) {
        let body = body(rule);
        // Rules are short, and a test compiles all that there are.
        let length = u8::try_from(body.len()).unwrap_or(u8::MAX);
        program.push(jump(BPF_JEQ, u32::try_from(rule.call).unwrap_or(u32::MAX), 0, length));
        program.extend(body);
    }
    program.push(end(Verdict::Kill));
    program
}

/// Ends in any case, so that what it loads over the number of the call does not matter.
fn body(rule: &Rule) -> Vec<libc::sock_filter> {
    let mut body = Vec::new();
    for case in &rule.cases {
        let lengths: Vec<u8> = case.iter().map(|check| if check.mask == u32::MAX { 2 } else { 3 }).collect();
        for (index, check) in case.iter().enumerate() {
            body.push(load(check.offset));
            if check.mask != u32::MAX {
                body.push(statement(BPF_ALU | BPF_AND | BPF_K, check.mask));
            }
            // Past the other checks of this case and its `Allow`.
            let rest = lengths[index + 1..].iter().sum::<u8>() + 1;
            body.push(jump(BPF_JEQ, check.value, 0, rest));
        }
        body.push(end(Verdict::Allow));
    }
    body.push(end(rule.otherwise));
    body
}

#[cfg(test)]
pub(super) mod testing;

#[cfg(test)]
mod tests {
    use super::testing::run;
    use super::*;

    #[test]
    fn each_case_is_checked_whole_and_by_itself() {
        let rules = [
            allow(3),
            always(4, Verdict::Fail(13)),
            only(5, vec![vec![is(1, 6), has_no(2, 0b10)], vec![has_all(0, 0b101)]], Verdict::Kill),
            only(6, vec![vec![is(0, 1)]], Verdict::Fail(1)),
            only(9, vec![is_null(5).into()], Verdict::Kill),
        ];
        let program = compile(7, &rules);
        let verdict = |call, arguments| run(&program, 7, call, arguments);
        let [allowed, killed] = [Verdict::Allow, Verdict::Kill].map(Verdict::value);
        assert_eq!(verdict(3, [9; 6]), allowed);
        assert_eq!(verdict(4, [0; 6]), Verdict::Fail(13).value());
        for (arguments, expected) in [
            ([0, 6, 0, 0, 0, 0], allowed),
            ([0, 6, 1, 0, 0, 0], allowed),
            ([0, 6, 2, 0, 0, 0], killed),
            ([0, 7, 0, 0, 0, 0], killed),
            ([5, 7, 2, 0, 0, 0], allowed),
            ([4, 7, 2, 0, 0, 0], killed),
        ] {
            assert_eq!(verdict(5, arguments), expected, "{arguments:?}");
        }
        assert_eq!(verdict(6, [1, 0, 0, 0, 0, 0]), allowed);
        assert_eq!(verdict(6, [2, 0, 0, 0, 0, 0]), Verdict::Fail(1).value());
        for (pointer, expected) in [(0, allowed), (1, killed), (1 << 32, killed)] {
            assert_eq!(verdict(9, [0, 0, 0, 0, 0, pointer]), expected, "{pointer}");
        }
        for other in [0, 2, 7, 8, 0x4000_0003] {
            assert_eq!(verdict(other, [0; 6]), killed, "call {other}");
        }
        assert_eq!(run(&program, 8, 3, [0; 6]), killed, "another architecture");
    }
}
