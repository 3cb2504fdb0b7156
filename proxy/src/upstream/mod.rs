//! Upstreams: endpoints, balancing, pools of exchange slots, and connecting.
