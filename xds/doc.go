// Package xds turns the fleet into Envoy's configuration and serves it over
// delta ADS (xDS v3, envoy.service.discovery.v3).
//
// It is a one-way pipeline; each stage takes one type and gives the next:
//
//	fleet.Snapshot → plan → resources → publication → session (one per Envoy)
//
// A plan says which instances serve which model from where. The resources are
// pure functions of it, one file per Envoy type. A publication is an immutable
// set of resources for each region. A session is what one Envoy has asked for,
// was sent, and has answered; it is a state machine without clock or I/O.
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
//   - A rejected resource is not sent again before it changes. It is sent anew
//     on a new stream, where the Envoy may be another.
//   - A set that does not validate is not published; the last good one stays.
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
