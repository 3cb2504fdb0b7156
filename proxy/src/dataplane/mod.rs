//! The data plane process: unprivileged; control thread, log thread, workers.
