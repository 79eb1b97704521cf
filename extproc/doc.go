// Package extproc is the picker: it tells Envoy which instance serves each
// request, and refuses requests that no instance could serve.
//
// A [Picker] is two gRPC services that a router puts on its port:
//
//	picker, err := extproc.New(extproc.Config{…})
//	extprocv3.RegisterExternalProcessorServer(server, picker)
//	accesslogv3.RegisterAccessLogServiceServer(server, picker)
//
// Envoy's ext_proc filter sends the request's headers alone. The answer is
// either dynamic metadata for the override_host load balancing policy, under
// envoy.lb / x-gateway-destination-endpoint, as an ordered list of addresses
// (the endpoint picker protocol 1.0.0 of the Gateway API inference extension),
// or an immediate response with an error in OpenAI's shape.
//
// What the picker counts on from Envoy's configuration:
//   - ext_proc: processing_mode with request headers only, metadata_options with
//     receiving_namespaces untyped envoy.lb, failure_mode_allow.
//   - a connection manager that makes x-request-id itself and overwrites what
//     the client sent: the picker tells requests apart by it.
//   - a gRPC access log to the same router, written at the end of each request:
//     it is how the picker learns that a request is no longer in flight. What
//     never gets there is forgotten after a time-out. An upstream log of the
//     attempts at other instances than the first one named, as each begins, by
//     the same stream: it is how the picker learns where a retry went.
//
// From the same log it learns how instances fare: one whose requests end with a
// status from 500, are cut off, or had to be retried elsewhere gets probes only
// within a second (see package routing), until they succeed or it has been
// unready meanwhile. What else it remembers is where each conversation's last
// request went, by its opaque affinity, and since when instances have been ready.
//
// It holds tenants to their limits, and to their shares while nothing is free
// (package quota): who is over either is refused, and nobody waits here. What a
// request has used of them the log says at its end.
//
// Where a region has several pickers, each hears what the others have in flight:
// [Picker.Tell] makes the messages of package peers, [Picker.Learn] takes them,
// and whoever runs the picker carries them. So it does to pickers of other regions and
// from there, of tenants' limits alone ([Picker.TellAbroad], [Picker.LearnAbroad]).
//
// The picker serves from the snapshot of the fleet that it is given, however
// old. It never reads a store, dials anyone, sees a body, starts a goroutine of
// its own, or logs or echoes a credential. Streams live as long as Envoy keeps
// them, so a graceful stop of the gRPC server needs a time limit.
package extproc
