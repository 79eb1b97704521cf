// Package xds turns the fleet into Envoy's configuration and serves it over
// ADS (xDS v3, envoy.service.discovery.v3): delta, which Envoy is told to speak,
// and state of the world, which is all that gRPC's own clients do.
//
// It is a one-way pipeline; each stage takes one type and gives the next:
//
//	fleet.Snapshot → plan → resources → publication → stage (one per region) → session (one per Envoy)
//
// A plan says which instances serve which model from where. The resources are
// pure functions of it, one file per Envoy type. A publication is an immutable
// set of resources for each region. A stage says which of them an Envoy may have
// already. A session is what one Envoy has asked for, was sent, and has answered.
// Stage and session are state machines without clock or I/O.
//
//	server, err := xds.New(xds.Config{...})
//	server.Register(grpcServer)                       // before Serve
//	server.SetTenantCertificate(certPEM, keyPEM)
//	server.SetTenants(keeper.Set())
//	go server.Run(ctx)
//	for snapshot := range store.Watch(ctx) {
//		server.Update(snapshot)
//	}
//
// Nothing is published before there is all of a snapshot, tenants and a certificate.
//
// # Promises
//
// The server is its own, on go-control-plane's protos, and not that module's
// MuxCache and LinearCache, because those cannot keep them:
//
//   - A version is a hash of the content, so that nothing is sent twice, not
//     even by a router that has restarted or by another one of the region.
//   - What arrives together is safe in that order: clusters and their endpoints
//     are acknowledged before a listener or route that uses them is sent, and a
//     cluster goes only after the routes to it have gone.
//   - What an Envoy rejects is quarantined for it: not sent to it again, in this
//     stream or the next, before it has changed or the Envoy has started anew;
//     and the Envoy is sent at once what it last accepted in its stead. xDS says
//     neither which resource of a response was refused nor whether the others
//     are in use: those that the message names were, or all if it names none,
//     and the others are sent once more. A roll-back that is refused is the end.
//   - What refers to a rejected version stays as it was, too (routes to clusters
//     and listeners, listeners to secrets), and clusters stay that they refer to.
//     An Envoy that has nothing to stay on is given it all the same.
//   - A changed cluster, secret, listener or route goes to one Envoy of the
//     region first. When that one has accepted it, the others have it; when it
//     rejects it, they never do. One that hangs or goes delays them by
//     TrialTimeout (and a quarter, the precision of the clock), then another
//     tries. Endpoints go to all at once.
//   - A set that does not validate is not published; the last good one stays.
//   - Nothing is withdrawn because a router has just started and knows nothing.
//   - A changed cluster is followed by its endpoints, without which Envoy would
//     hold it back (it warms again).
//   - Updates are coalesced. At most one response per type is unanswered, and
//     publications keep a minimum distance; the last one always goes out.
//
// # What it never does
//
// It never picks an instance for a request (package extproc does), never reads
// a store, and never forgets what it published when the fleet cannot be read:
// Envoy goes on with what it has.
package xds
