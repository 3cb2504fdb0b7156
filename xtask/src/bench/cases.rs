//! What is measured: each case by name, its load, and who takes part.

use super::load::Wrk;
use super::peers::Kind;

/// One kind of load.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) name: String,
    pub(super) title: String,
    pub(super) what: What,
}

/// See the variants.
#[derive(Clone, Debug)]
pub(super) enum What {
    /// Small responses over so many kept connections, over so many routes (0: one for everything).
    Small { connections: usize, routes: usize },
}

impl Case {
    /// How wrk makes its load, for cases that are requests.
    pub(super) fn wrk(&self) -> Option<Wrk> {
        match self.what {
            What::Small { connections, routes } => Some(Wrk { connections, path: "/", close: false, routes }),
        }
    }
}

/// All of them, in the order of the report.
pub(super) fn all() -> Vec<Case> {
    [16, 64, 256, 1024, 4000]
        .map(|connections| Case {
            name: format!("small-{connections}"),
            title: format!("small response, {connections} connections"),
            what: What::Small { connections, routes: 0 },
        })
        .into()
}

/// Whose turn it is: the order is another in each round, so that nobody always follows the same neighbour.
pub(super) const fn turn(round: usize, turn: usize, count: usize) -> usize {
    let at = (round / 2 + turn) % count;
    if round % 2 == 0 { at } else { count - 1 - at }
}

/// Those asked for by name, in the report's order.
pub(super) fn chosen(names: &[String]) -> Result<Vec<Case>, String> {
    let all = all();
    for name in names {
        if !all.iter().any(|case| case.name == *name) {
            let known: Vec<&str> = all.iter().map(|case| case.name.as_str()).collect();
            return Err(format!("no case is called {name}; there are: {}", known.join(", ")));
        }
    }
    Ok(all.into_iter().filter(|case| names.contains(&case.name)).collect())
}

/// Peers asked for by name.
pub(super) fn peers(names: &[String]) -> Result<Vec<Kind>, String> {
    names
        .iter()
        .map(|name| {
            Kind::PEERS
                .into_iter()
                .find(|kind| kind.name() == name)
                .ok_or_else(|| format!("no peer is called {name}; there are: {}", Kind::PEERS.map(Kind::name).join(", ")))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_has_one_turn_a_round_and_orders_change() {
        for count in 1..6 {
            let mut orders = Vec::new();
            for round in 0..2 * count {
                let order: Vec<usize> = (0..count).map(|at| turn(round, at, count)).collect();
                let mut sorted = order.clone();
                sorted.sort_unstable();
                assert_eq!(sorted, (0..count).collect::<Vec<_>>());
                orders.push(order);
            }
            orders.dedup();
            assert!(count == 1 || orders.len() > count, "{orders:?}");
        }
    }

    #[test]
    fn unknown_names_are_told_with_the_known_ones() {
        assert!(chosen(&["small-65".into()]).unwrap_err().contains("small-64"));
        assert_eq!(chosen(&["small-64".into()]).unwrap().len(), 1);
        assert!(peers(&["apache".into()]).unwrap_err().contains("haproxy"));
        assert_eq!(peers(&["relay".into()]).unwrap(), [Kind::Relay]);
    }
}
