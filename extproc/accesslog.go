package extproc

import (
	"cmp"
	"errors"
	"io"
	"net"
	"strconv"

	accesslogdatav3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/mrgc/mrgc/internal/peers"
)

// StreamAccessLogs learns from Envoy's access log where requests have moved,
// which have ended, and how.
func (p *Picker) StreamAccessLogs(stream grpc.ClientStreamingServer[accesslogv3.StreamAccessLogsMessage, accesslogv3.StreamAccessLogsResponse]) error {
	// Where Envoy had its log before, if anywhere, entries may have got lost: of requests
	// that were picked here while the log still went to a router that hangs.
	p.inFlight.Doubt(p.now())
	for {
		message, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return stream.SendAndClose(&accesslogv3.StreamAccessLogsResponse{})
		}
		if err != nil {
			p.inFlight.Doubt(p.now()) // entries that were on their way are lost
			return err                // gRPC's own: Envoy has gone, and connects again by itself
		}
		for _, entry := range message.GetHttpLogs().GetLogEntry() {
			p.account(entry)
		}
	}
}

// account follows one request by one entry of the log, and learns from it how
// instances fare.
//
// Envoy opens its log to the router that it prefers, as it does each question
// for a pick, but keeps it open: after that router's absence picks go to it again
// while the log stays with another, and in a moment of trouble the two part for
// single requests. So a picker tells its peers what it cannot place, and the
// one whose request it is counts it off within some 10 ms. What gets lost on the
// way, or is of a router that has ended, ends by the time-out, or with the view
// that others had of that router.
func (p *Picker) account(entry *accesslogdatav3.HTTPAccessLogEntry) {
	common := entry.GetCommonProperties()
	e := peers.Event{Request: entry.GetRequest().GetRequestId(), Used: peers.UsedUnknown}
	instance := p.index().at(addressOf(common))
	if instance != nil {
		e.Instance = instance.ID
	}
	switch common.GetAccessLogType() {
	case accesslogdatav3.AccessLogType_UpstreamPoolReady:
		if e.Instance == "" { // has left the fleet, takes no more requests: the count may stay where it is
			return
		}
		e.Kind = peers.Moved
	case accesslogdatav3.AccessLogType_NotSet, accesslogdatav3.AccessLogType_DownstreamEnd:
		if waited, known := waitOf(common); known {
			p.metrics.wait.Observe(waited)
			p.noteWait(e.Request, waited)
		}
		e.Kind, e.Used = outcomeOf(entry), usedBy(entry)
		if instance != nil {
			p.tellEnded(entry, instance, e.Kind)
		}
	default:
		return
	}
	if p.apply(e) {
		p.shared.changed.raise()
	} else {
		p.shared.tellStray(e)
	}
}

// apply does what the log says, and says whether the request was in flight.
//
// An attempt at an instance that the picker did not name first is where the
// request is from then on; the one before has failed it, or is not there for
// Envoy, which is as bad.
func (p *Picker) apply(e peers.Event) (wasInFlight bool) {
	p.noteEvent(e)
	if e.Kind == peers.Moved {
		from := p.inFlight.Move(e.Request, e.Instance)
		if from != "" && from != e.Instance {
			p.outcomes.add(from, true, p.now())
			p.tellMoved(e.Request, from)
		}
		return from != ""
	}
	at, taken := p.inFlight.Done(e.Request)
	p.settle(taken, e)
	switch where := cmp.Or(e.Instance, at); { // also of a request that the picker did not see
	case where == "" || e.Kind == peers.Ended:
	case e.Kind == peers.Failed:
		p.outcomes.add(where, true, p.now())
	case e.Instance != "": // somebody answered, who must be known
		p.outcomes.add(where, false, p.now())
	}
	return at != ""
}

// addressOf is where an attempt went, as instances write their addresses; empty
// when it went nowhere.
func addressOf(c *accesslogdatav3.AccessLogCommon) string {
	address := c.GetUpstreamRemoteAddress().GetSocketAddress()
	if address == nil {
		return ""
	}
	return net.JoinHostPort(address.GetAddress(), strconv.FormatUint(uint64(address.GetPortValue()), 10))
}

// filterState is what Envoy calls its own notes of the picker: the name of the
// filter.
const filterState = "envoy.filters.http.ext_proc"

// waitOf is for how long Envoy waited for the picker, in seconds, by its own
// clock; not known when it never got to ask.
func waitOf(c *accesslogdatav3.AccessLogCommon) (seconds float64, known bool) {
	var notes structpb.Struct
	if notesAny := c.GetFilterStateObjects()[filterState]; notesAny == nil || notesAny.UnmarshalTo(&notes) != nil {
		return 0, false
	}
	latency, known := notes.GetFields()["request_header_latency_us"].GetKind().(*structpb.Value_NumberValue)
	if !known {
		return 0, false
	}
	return latency.NumberValue * 1e-6, true
}
