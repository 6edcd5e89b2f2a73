//! What an operator can do about a Redis that is away, by what was wrong.
//!
//! Reads what a server or the network said; never: anything that was sent to it.

use super::settings::{Settings, Topology};

/// What was wrong, and in brackets how to mend it where that is known.
pub(super) fn told(trouble: &str, settings: &Settings) -> String {
    // Which script of Redis's own says nothing to anybody.
    let trouble = trouble.split(" script: ").next().unwrap_or(trouble).trim_end_matches([',', '.', ' ']);
    match remedy(trouble, settings) {
        Some(remedy) => format!("{trouble} ({remedy})"),
        None => trouble.to_owned(),
    }
}

fn remedy(trouble: &str, settings: &Settings) -> Option<String> {
    let has = |words: &[&str]| words.iter().any(|word| trouble.contains(word));
    let cluster = settings.topology == Topology::Cluster;
    let remedy = if has(&["NOAUTH", "unauthenticated"]) {
        "it asks for a password: write redis.password, and redis.username for an ACL user"
    } else if has(&["WRONGPASS", "AuthenticationFailed", "invalid username-password"]) {
        "check redis.username and redis.password"
    } else if has(&["NOPERM", "can't run this command", "no permissions"]) {
        let more = if cluster { " +cluster" } else { "" };
        let prefix = &settings.prefix;
        return Some(format!("the user needs ~{prefix}:* +@connection +evalsha +eval +get +set +time{more}"));
    } else if has(&["READONLY"]) {
        "this is a replica: write the master, or cluster or sentinel"
    } else if has(&["OOM"]) {
        "it is full: raise its maxmemory, or give limits a Redis of their own"
    } else if has(&["NOREPLICAS"]) {
        "its min-replicas-to-write is not met: bring its replicas back"
    } else if has(&["MOVED", "CROSSSLOT"]) && !cluster {
        "it belongs to a cluster: write cluster: true"
    } else if has(&["cluster support disabled"]) {
        "it is no cluster: write one endpoint and leave cluster out"
    } else if has(&["DB index"]) {
        "write a db that it has"
    } else if has(&["lookup address", "failed to lookup", "Name or service"]) {
        "check the name in redis.endpoints"
    } else if has(&["connection refused", "Connection refused"]) {
        "nothing listens there: check that it runs, and redis.endpoints"
    } else if has(&["no connection within", "does not answer"]) {
        match settings.tls {
            Some(_) => "check the network, that it is not held up, and that it speaks TLS on that port",
            None => {
                "check the network, that it is not held up, and whether that port speaks TLS: then write redis.tls"
            }
        }
    } else if has(&["sentinel node"]) {
        "check that redis.endpoints name sentinels"
    } else if has(&["certificate"]) {
        "check redis.tls, and the name in redis.endpoints"
    } else if has(&["take longer than", "answers only after"]) {
        "if that is its usual pace, raise redis.timeout"
    } else if has(&["nonsense"]) {
        "check that redis.endpoints name a Redis"
    } else {
        return None;
    };
    Some(remedy.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_redis_says_is_followed_by_what_to_do() {
        let settings = Settings { prefix: "edge".to_owned(), ..Settings::of_a_test() };
        for (trouble, told_as) in [
            (
                "ERR The user executing the script can't run this command or subcommand script: dc44, on @user_script:58.",
                "ERR The user executing the script can't run this command or subcommand (the user needs ~edge:* \
                 +@connection +evalsha +eval +get +set +time)",
            ),
            (
                "OOM command not allowed when used memory > 'maxmemory'. script: dc44, on @user_script:58.",
                "OOM command not allowed when used memory > 'maxmemory' (it is full: raise its maxmemory, or give \
                 limits a Redis of their own)",
            ),
            (
                "Password authentication failed - AuthenticationFailed",
                "Password authentication failed - AuthenticationFailed (check redis.username and redis.password)",
            ),
            ("broken pipe", "broken pipe"),
            (
                "LOADING Redis is loading the dataset in memory",
                "LOADING Redis is loading the dataset in memory",
            ),
        ] {
            assert_eq!(told(trouble, &settings), told_as);
        }
    }
}
