//! What `oomkill` is made of. Its event path runs when there is no memory: what
//! it needs is there before (`guard`), and what it tells of the time before a
//! kill was noted before (`history`).

pub mod commands;
pub mod guard;
pub mod history;
pub mod kill;
