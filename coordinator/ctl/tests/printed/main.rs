//! What `tccctl` prints, and what it offers to a shell: the binary against a server that gives prepared answers.

mod completions;
mod golden;
mod prepared;
