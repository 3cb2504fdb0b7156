//! Tests of `http::underscores`.

use proptest::prelude::*;

use super::*;

fn left(names: &[&str], rule: Underscores) -> Vec<String> {
    let mut fields = Fields::new();
    names.iter().for_each(|name| fields.push(name.as_bytes(), b"1"));
    remove(&mut fields, rule);
    fields.iter().map(|(name, _)| String::from_utf8_lossy(name).into_owned()).collect()
}

#[test]
fn only_names_that_collide_go_unless_a_key_says_otherwise() {
    use Underscores::*;
    let names = ["X-User", "x_user", "X_Solo", "Accept", "x_solo", "A_b-c", "a-b_c", "X_Forwarded_For"];
    assert_eq!(left(&names, DropColliding), ["X-User", "X_Solo", "Accept", "x_solo"]);
    assert_eq!(left(&names, Keep), names);
    assert_eq!(left(&names, Drop), ["X-User", "Accept"]);
    // Names of ours that this request happens not to have.
    let spoofs =
        ["Content_Length", "Transfer_Encoding", "Proxy_Authorization", "X.Forwarded.For", "X_Real_IP"];
    assert_eq!(left(&spoofs, DropColliding), [""; 0]);
    assert_eq!(left(&spoofs, Drop), [""; 0]);
    assert_eq!(left(&["Content-Type", "X-A"], Drop), ["Content-Type", "X-A"]);
}

#[test]
fn many_names_cost_no_square() {
    let names: Vec<String> = (0..20_000).flat_map(|at| [format!("a_{at}"), format!("A-{at}")]).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    assert_eq!(left(&names, Underscores::DropColliding).len(), 20_000);
}

proptest! {
    #[test]
    fn no_two_spellings_are_left(names in proptest::collection::vec("[aAbB][-_][aAbB][-_]?[aA]?", 0..12)) {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let left = left(&names, Underscores::DropColliding);
        let spelt = |name: &str| name.to_ascii_lowercase().replace('_', "-");
        for name in &names {
            let mut others = names.iter().filter(|other| spelt(other) == spelt(name));
            let collides = name.contains('_') && others.any(|other| !other.eq_ignore_ascii_case(name));
            prop_assert_eq!(left.iter().any(|left| left == name), !collides, "{}", name);
        }
    }
}
