package extproc

import (
	"errors"
	"io"
	"net"
	"strconv"

	accesslogdatav3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/structpb"
)

// StreamAccessLogs learns from Envoy's access log where requests have moved,
// which have ended, and how.
func (p *Picker) StreamAccessLogs(stream grpc.ClientStreamingServer[accesslogv3.StreamAccessLogsMessage, accesslogv3.StreamAccessLogsResponse]) error {
	for {
		message, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return stream.SendAndClose(&accesslogv3.StreamAccessLogsResponse{})
		}
		if err != nil {
			return err // gRPC's own: Envoy has gone, and connects again by itself
		}
		for _, entry := range message.GetHttpLogs().GetLogEntry() {
			p.account(entry)
		}
	}
}

// account follows one request by one entry of the log, and learns from it how
// instances fare.
//
// An attempt at an instance that the picker did not name first is where the
// request is from then on; the one before has failed it, or is not there for
// Envoy, which is as bad. An instance that has left the fleet meanwhile takes no
// more requests, so that the count may stay where it is.
func (p *Picker) account(entry *accesslogdatav3.HTTPAccessLogEntry) {
	common, id := entry.GetCommonProperties(), entry.GetRequest().GetRequestId()
	instance := p.index().at(addressOf(common))
	switch common.GetAccessLogType() {
	case accesslogdatav3.AccessLogType_UpstreamPoolReady:
		if instance == nil {
			return
		}
		if from := p.inFlight.Move(id, instance.ID); from != "" && from != instance.ID {
			p.outcomes.add(from, true, p.now())
		}
	case accesslogdatav3.AccessLogType_NotSet, accesslogdatav3.AccessLogType_DownstreamEnd:
		if waited, known := waitOf(common); known {
			p.metrics.wait.Observe(waited)
		}
		where := p.inFlight.Done(id)
		if instance != nil {
			where = instance.ID // also of a request that the picker did not see
		}
		switch outcome := outcomeOf(entry); {
		case where == "" || outcome == saysNothing:
		case outcome == failed:
			p.outcomes.add(where, true, p.now())
		case instance != nil: // somebody answered, who must be known
			p.outcomes.add(where, false, p.now())
		}
	}
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
