//! Where the endpoints of a service are found when its list of servers does not name them one by one.

pub mod dns;
