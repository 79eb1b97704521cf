// Package api is the tenant-facing HTTP surface that several parts must agree
// on: paths, header names, content types, and errors in OpenAI's shape.
//
// It holds names and one error type, no behaviour of any role. A part that
// answers a tenant builds an [Error] and calls [Error.Write]; a part that
// receives one calls [ParseError].
package api

import "time"

// Paths of the tenant endpoint (Envoy's port 443).
const (
	// PathSealed takes every sealed request; the operation is inside the
	// envelope, bound to it, because proxies normalise paths.
	PathSealed = "/v1/sealed"
	// PathKeys lists the recipients that a request for a model may be sealed to.
	PathKeys = "/.well-known/mrgc/keys"
	// PathModels lists the models that are served.
	PathModels = "/v1/models"
)

// PathDoor is where a region's front door says whether the region takes requests,
// to other parts of the cluster alone: on the tenants' port, to who asks for the TLS
// server name [DoorName] and proves to be a controller. A router answers, or, where
// there is none, an instance: 200, or 503 when nothing of the region is ready.
const (
	PathDoor = "/.well-known/mrgc/door"
	DoorName = "door.mrgc.internal"
)

// PathTenants is where an enclave takes the signed list of tenants from its
// parent, by PUT, and says by GET which it holds.
const PathTenants = "/tenants"

// Tenants is the answer of [PathTenants].
type Tenants struct {
	Version uint64 `json:"version"` // of the list; 0: none yet
}

// PathHost is where an enclave takes what its parent says of the instance, by
// PUT: receipts repeat it, as the host's assertion.
const PathHost = "/host"

// Host is the body of [PathHost].
type Host struct {
	ModelVersion string    `json:"model_version"` // of the model that the engine serves; empty: not known
	WashID       string    `json:"wash_id"`       // of the last full wash that passed; empty: none
	WashEndedAt  time.Time `json:"wash_ended_at"`
}

// PathWash is where a parent takes, from routers alone, an operator's order to wash
// its instance in full, by POST without a body. 202 says that it will be.
const PathWash = "/wash"

// What an engine's guard does for a full wash of its instance, by POST without a
// body, and answers with [WashDone] or an error.
const (
	PathWashPlant = "/wash/plant" // has the engine remember a canary, and makes sure that it does
	PathWashClear = "/wash/clear" // has it forget all that it remembers of requests
	// PathWashRestart has it restarted, and the GPUs' memory overwritten meanwhile where
	// its supervisor is told to. It is answered when the engine answers again, which
	// takes as long as that takes to load its model.
	PathWashRestart = "/wash/restart"
	PathWashCheck   = "/wash/check" // makes sure that it does not remember the canary
)

// WashDone is what the guard has done.
type WashDone struct {
	Detail string `json:"detail"` // for people
}

// PathAWSCredentials is where an enclave takes credentials for KMS from its
// parent, by PUT, and says by GET which it holds. An enclave that does not ask
// KMS has no such path.
const PathAWSCredentials = "/aws-credentials"

// AWSCredentials are what [PathAWSCredentials] takes.
type AWSCredentials struct {
	AccessKeyID     string `json:"access_key_id"`
	SecretAccessKey string `json:"secret_access_key"`
	SessionToken    string `json:"session_token,omitempty"`
}

// AWSCredentialsHeld is what [PathAWSCredentials] gives.
type AWSCredentialsHeld struct {
	AccessKeyID string `json:"access_key_id"` // empty: none yet
}

// PathHostAttestation is where an engine's guard has its host's NitroTPM vouch for
// the key of the guard's certificate: POST of a nonce of [HostNonceBytes], answered
// with the attestation document.
const (
	PathHostAttestation = "/host-attestation"
	HostNonceBytes      = 32
)

// PathKeyReleases is where an enclave says which data keys it has had KMS release, and
// whether it trusts its engine's host, for its parent's audit log. The query says what the parent has: all up to the
// sequence number "after" of the enclave that "enclave" names.
const PathKeyReleases = "/key-releases"

// KeyReleases is the answer of [PathKeyReleases].
type KeyReleases struct {
	Enclave  string       `json:"enclave"` // another one after each start
	Lost     uint64       `json:"lost"`    // that were forgotten before anybody asked
	Releases []KeyRelease `json:"releases"`
}

// KeyRelease is one data key that KMS was asked for: a request's, or a fleet's seed;
// or what an enclave came to think of its engine's host.
type KeyRelease struct {
	Sequence  uint64        `json:"seq"` // from 1 on, without gaps
	Time      time.Time     `json:"time"`
	Took      time.Duration `json:"took_ns,omitempty"` // of a request's: attestation and KMS's call, with its answer opened
	RequestID string        `json:"request,omitempty"`
	Tenant    string        `json:"tenant,omitempty"`
	Error     string        `json:"error,omitempty"` // why KMS gave none, or the host is refused; empty: it did, or is not
	Fleet     *FleetStep    `json:"fleet,omitempty"` // set: what has happened to a fleet's key; then there is no request
	Host      *HostStep     `json:"host,omitempty"`  // set: what has changed with the engine's host; then there is no request
}

// HostStep is a change of what an enclave thinks of its engine's host: it trusts one, or,
// with an error beside it, refuses one.
type HostStep struct {
	Image    string `json:"image,omitempty"`    // of one that is trusted: its name in the measured list
	Key      string `json:"key"`                // of the guard there: SHA-256 of its SubjectPublicKeyInfo, in hex
	Refusals uint64 `json:"refusals,omitempty"` // since the step before
}

// FleetStep is one of a fleet's key, which belongs to an epoch of a region.
type FleetStep struct {
	Step   string `json:"step"` // one of the constants below
	Fleet  string `json:"fleet"`
	Region string `json:"region"`
	Epoch  string `json:"epoch"`
	KeyID  string `json:"key,omitempty"` // empty: there is none yet
}

// Steps of a fleet's key in an enclave.
const (
	FleetSeedMade     = "made"     // KMS made the seed for this enclave, the epoch's first
	FleetSeedReleased = "released" // KMS released the seed, which another has had made
	FleetSeedRefused  = "refused"  // neither: the error says why
	FleetKeyWiped     = "wiped"    // the epoch is over, and so is the key
)

// Request and response headers. Those that the envelope binds are marked; a
// request carries each of them at most once.
const (
	HeaderModel          = "Mrgc-Model"           // bound: the model's name, aliases resolved by the client
	HeaderTenant         = "Mrgc-Tenant"          // bound: the tenant's name
	HeaderAffinity       = "Mrgc-Affinity"        // bound: opaque key of a conversation's prefix, may be absent
	HeaderSize           = "Mrgc-Size"            // bound: bucketed sizes "prompt/output" in tokens, may be absent
	HeaderRecipients     = "Mrgc-Recipients"      // bound: key ids in hex, comma separated, in the envelope's order
	HeaderRequestID      = "Mrgc-Request-Id"      // bound: the request id in hex
	HeaderFrames         = "Mrgc-Frames"          // "64": the client reads frames of every multiple of so many bytes; without it those of four sizes. Not bound
	HeaderTenantSAN      = "Mrgc-Tenant-San"      // set by Envoy, never taken from a client: which name of its client's certificate is a tenant's; no further than picker, routers and keys
	HeaderAllowedRegions = "Mrgc-Allowed-Regions" // set by Envoy: regions where the tenant's data may be, comma separated
	HeaderUncached       = "Mrgc-Uncached"        // prompt tokens that the picker expects not to be cached; from picker to parent, no further
	HeaderUsage          = "Mrgc-Usage"           // trailer: tokens used, as in HeaderSize; from enclave to parent to Envoy's log
	HeaderOutcome        = "Mrgc-Outcome"         // trailer: how a request has not been served, one of the Outcome constants; from enclave to parent to Envoy's log
	HeaderNotRun         = "Mrgc-Not-Run"         // response of the guard to the enclave: "1" when the engine was never asked
	HeaderKeyStatus      = "Mrgc-Key-Status"      // response: "stale" when no recipient's key is held any more

	// HeaderDestination and HeaderServed are the names of the Gateway API
	// inference extension's endpoint picker protocol 1.0.0: the endpoints asked
	// for, in order of preference, and the one that served.
	HeaderDestination = "X-Gateway-Destination-Endpoint"
	HeaderServed      = "X-Gateway-Destination-Endpoint-Served"
)

// KeyStatusStale is the value of [HeaderKeyStatus] that asks the client to
// fetch recipients again.
const KeyStatusStale = "stale"

// FramesRead is the value of [HeaderFrames]: package seal's FrameStep.
const FramesRead = "64"

// Values of [HeaderOutcome]. An answer's seal hides its status; whether an engine
// does its work those must know who choose it.
const (
	OutcomeFailed  = "failed"  // the engine failed: a status from 500, no answer, or half of one
	OutcomeRefused = "refused" // the engine would not: a status from 400
	// OutcomeRejected says that the enclave would not, and has not asked the engine.
	OutcomeRejected = "rejected"
)

// Content types of the sealed envelope.
const (
	ContentTypeSealedRequest  = "application/mrgc-chunked-req"
	ContentTypeSealedResponse = "application/mrgc-chunked-res"
)
