//! The guard's verdicts and the layout of its maps.
