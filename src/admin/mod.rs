//! What administrators see and set of the machinery itself. (What they set of a feature is in the feature.)

pub mod schedules;
