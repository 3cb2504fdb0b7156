//! Listening sockets and admission.
