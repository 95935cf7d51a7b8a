//! The rules, each with what is wrong and what to do.

use crate::{
    error::suggestion,
    values::{HeaderName, HostPattern, Id, Span},
};

/// A rule and the two texts that belong to it stand together: a rule without a fix cannot be written.
macro_rules! rules {
    ($($(#[$doc:meta])* $name:ident $({ $($field:ident: $type:ty),* })? $code:literal, $message:literal, $fix:expr;)*) => {
        /// A rule that the configuration breaks. `Display` says what is wrong.
        #[derive(Debug, Clone, PartialEq, thiserror::Error)]
        #[non_exhaustive]
        pub enum Rule {
            $($(#[$doc])* #[error($message)] $name $({ $($field: $type),* })?,)*
        }

        impl Rule {
            /// A stable name of the rule, for programs.
            pub fn code(&self) -> &'static str {
                match self {
                    $(Self::$name { .. } => $code,)*
                }
            }

            /// What to do.
            #[allow(unused_variables, reason = "a fix need not repeat what the message says")]
            pub fn fix(&self) -> String {
                match self {
                    $(Self::$name $({ $($field),* })? => $fix.to_string(),)*
                }
            }
        }
    };
}

rules! {
    // Names and references.
    DuplicateTenant { id: Id, first: String } "duplicate_tenant",
        "the tenant {id} stands in {first} already", "give one of the two another id, or remove it";
    DuplicateHost { host: HostPattern, tenant: Id } "duplicate_host",
        "the host {host} is served by the tenant {tenant} already", "a host belongs to one tenant: remove it from one of them";
    Duplicate { what: &'static str, name: String } "duplicate",
        "the {what} {name} stands twice", "keep one";
    UnknownReference { what: &'static str, name: Id, known: Vec<String> } "unknown_reference",
        "there is no {what} {name}",
        if known.is_empty() { format!("define the {what}, there is none yet") } else { suggestion(name.as_str(), known, "defined are") };
    Empty { what: &'static str, add: &'static str } "empty",
        "{what} is empty", format!("add {add}");
    Zero { what: &'static str, least: &'static str } "zero",
        "{what} is zero", format!("write {least}");
    Reversed { low: &'static str, low_value: String, high: &'static str, high_value: String } "reversed",
        "{low} ({low_value}) is more than {high} ({high_value})", format!("raise {high} or lower {low}");
    BadForm { what: &'static str, form: &'static str } "bad_form",
        "this is not {what}", format!("write {form}");
    TooMuch { what: &'static str, most: &'static str } "too_much",
        "{what} is too large", format!("{most} at most");
    /// The value is not shown.
    PasswordInUrl "password_in_url",
        "a user name or password in a URL is written to logs", "remove it from the URL";
    UrlNotSecure "url_not_secure",
        "whoever sits between could exchange what comes over plain HTTP", "use https (http is fine for localhost)";

    // Callers.
    KeyPrefixForm "key_prefix_form",
        "a key's prefix has 8 to 32 letters and digits", "write the part between sk_ and the second _ of the key, and nothing of what follows";
    KeyPrefixTaken { consumer: Id } "key_prefix_taken",
        "a key of the consumer {consumer} has this prefix already", "prefixes are unique within a tenant: make a new key";
    KeyScope { scope: String, consumer: Id } "key_scope",
        "the key has the scope {scope}, its consumer {consumer} has not", "a key narrows what its consumer may do: remove it here or add it to the consumer";
    CertificateTaken { consumer: Id } "certificate_taken",
        "the consumer {consumer} is known by this certificate already", "a certificate names one consumer: remove it from one of them";
    NoClientCa { what: &'static str } "no_client_ca",
        "{what}, but the tenant trusts no authority for client certificates", "add tls.client_ca to the tenant";
    LeewayTooLong { leeway: Span } "leeway_too_long",
        "a clock difference of {leeway} lets expired tokens in", "write 30s at most and set the clocks by NTP";

    // Versions.
    DefaultVersionRetired { version: Id } "default_version_retired",
        "{version} is retired: requests that name no version would get 410", "make a living version the default";
    SunsetBeforeDeprecation "sunset_before_deprecation",
        "the version stops working before it is deprecated", "put sunset after deprecated (RFC 9745 §4)";
    PathVersionUnknown { segment: String, known: Vec<String> } "path_version_unknown",
        "versions are told by the first segment of the path, and there is no version {segment}", suggestion(segment, known, "the versions are");
    PathVersionExcluded { version: Id } "path_version_excluded",
        "the path says {version}, match.versions does not: the route can never match", format!("add {version} to match.versions, or leave match.versions out");

    // Routes.
    Shadowed { by: Id } "shadowed",
        "the route {by} stands before it and takes every request that it could match", "change its match, put it first, or remove it";
    AlwaysTrue { test: &'static str } "always_true",
        "a {test} test with an empty text is always true", "write the text, or present: true";
    ToItself { what: &'static str, upstream: Id } "to_itself",
        "{what} goes to {upstream}, as the route itself does", "name another upstream, or remove it";
    Never { what: &'static str, needs: &'static str } "never",
        "{what} never applies", format!("write {needs}, or remove it");

    // Upstreams.
    NoWeight "no_weight",
        "all endpoints have the weight 0, so none can be chosen", "give at least one a weight of 1";
    GrpcNeedsHttp2 "grpc_needs_http2",
        "a gRPC probe needs HTTP/2, the upstream speaks HTTP/1.1", "add protocol: http2 to the upstream";
    InsecureWithCa "insecure_with_ca",
        "insecure_skip_verify accepts any certificate, so ca checks nothing", "remove insecure_skip_verify";

    // Policies.
    AnonymousWithRights "anonymous_with_rights",
        "anonymous callers have no scopes and no roles, so accepting them here lets nobody in", "remove anonymous from accept, or scopes and roles";
    NoJwtIssuer "no_jwt_issuer",
        "JWTs are accepted, but the tenant has no issuer", "add jwt_issuers to the tenant, or remove jwt from accept";
    CorsAnyWithCredentials "cors_any_with_credentials",
        "any origin together with credentials lets every web site act as the user", "list the origins, or remove credentials";
    CorsAnyAmongOthers "cors_any_among_others",
        "the origin * stands beside others and makes them meaningless", "keep * or the others";
    CorsTooWide "cors_too_wide",
        "everyone can register a name under this", "name at least the registered domain, as in https://*.example.com";
    CorsAnyHeader "cors_any_header",
        "* is not a header name here", "name the headers; an empty request_headers allows those that the preflight asks for";
    OwnedHeader { header: HeaderName } "owned_header",
        "the gateway itself is responsible for the header {header}", "remove it (for Host see the upstream's host_header)";
    RenameClash { to: HeaderName } "rename_clash",
        "two headers are renamed to {to}", "give them different names";
    RenameToItself { header: HeaderName } "rename_to_itself",
        "{header} is renamed to itself", "remove it";
    HostBits { meant: String } "host_bits",
        "the address has bits beyond its prefix", format!("write {meant}, or a longer prefix for a single address");
    AllowedAndDenied { by: String } "allowed_and_denied",
        "it is allowed in vain: deny has {by}, and deny comes first", "remove it from one of the two";
    UnknownParameter { name: String, known: Vec<String> } "unknown_parameter",
        "the route's path has no parameter {name}",
        if known.is_empty() { "write a path without parameters, or add them to match.path".to_owned() } else { suggestion(name, known, "its parameters are") };
    ParameterOutsideRoute "parameter_outside_route",
        "only a route has parameters, and this is inherited by many", "move the replacement into the route";
    StripNeverApplies { prefix: String } "strip_never_applies",
        "no path that the route matches begins with {prefix}", "write the beginning of match.path";
    NotForRoutes { what: &'static str } "not_for_routes",
        "{what} belongs to the tenant as a whole, a route cannot have its own", "move it to the tenant, its plan or the defaults";
    ForRoutesOnly { what: &'static str } "for_routes_only",
        "{what} belongs to a route, and this holds for all of them", "move it to the routes that it is meant for";
    NoLimit "no_limit",
        "it limits nothing", "add rate, quotas or concurrency, or remove it; rate: unlimited switches an inherited one off";
    NotByAddress { what: &'static str } "not_by_address",
        "each node counts addresses for itself, so {what} cannot be counted by address", "write a rate or concurrency.requests, or count by consumer, header or claim";
    CostAboveBurst { cost: u64, burst: u64, limit: String } "cost_above_burst",
        "a request that weighs {cost} never fits into the burst of {burst} of {limit}", format!("write a cost of {burst} at most, or raise that burst to {cost}");
    CostAboveQuota { cost: u64, quota: u64, period: &'static str, limit: String } "cost_above_quota",
        "a request that weighs {cost} never fits into the {period} quota of {quota} of {limit}", format!("write a cost of {quota} at most, or raise that quota to {cost}");
    LowerRevision { in_force: u64, revision: u64 } "lower_revision",
        "its limits are not those in force, which are of revision {in_force}, and nothing that counts takes limits from revision {revision}, a lower one", format!("write revision: {in_force} or a higher one, also to go back to former limits");
    NoDocument "no_document",
        "there is nothing to validate against", "add body_schema or openapi";
    OpenApiVersion "openapi_version",
        "this is not an OpenAPI 3.1 document", "write openapi: 3.1.0 and convert the document";

    // Documents of the control plane.
    ForeignFile { folder: String } "foreign_file",
        "the control plane may name files below {folder} here, and no others", format!("put the file below {folder} of the folder that control_plane.files of the nodes names, and write its path as in {folder}/name");
    ForeignVariable { prefix: String } "foreign_variable",
        "the control plane may name variables here that begin with {prefix}, and no others", format!("set it on the nodes as {prefix}NAME, or refer to a file");
    NoVariables { folder: String } "no_variables",
        "environment variables are for tenants whose names have only letters, digits and single hyphens", format!("refer to a file below {folder}");

    // Nodes.
    NoListener "no_listener",
        "the node listens nowhere", "add an address to listeners.http or listeners.https";
    AddressTaken { other: &'static str } "address_taken",
        "{other} listens there already", "use another port";
    TrustsEveryone { what: &'static str } "trusts_everyone",
        "with this, {what} is believed from everyone, and any client can claim any address", "name the networks of your own proxies";
    ControlPlaneNotSecure "control_plane_not_secure",
        "without TLS, whoever sits between reads the node's token and decides what it serves", "use https; insecure_plain_http: true allows it all the same";
    TwoSources "two_sources",
        "the node has two sources of tenants, and they would contradict each other", "keep tenants or control_plane, and remove the other";
    ZoneWithoutRegion "zone_without_region",
        "a zone is a part of a region, and the node has none", "add region";
}
