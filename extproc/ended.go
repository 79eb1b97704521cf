package extproc

import (
	"strings"
	"time"

	accesslogdatav3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/peers"
	"github.com/mrgc/mrgc/internal/size"
)

// Ended is an attempt of a request at an instance that has ended, as Envoy's access
// log has it. Each is heard of by one router: the one that has the log, or for an
// attempt that was given up for another, the one that has picked.
type Ended struct {
	Instance *fleet.Instance
	Model    string
	Size     size.Buckets // as declared; zero when it is not
	// Failed says that the instance has failed it, Refused that its engine would not,
	// which may be the request's fault.
	Failed, Refused bool
	// FirstByte is the time from when the instance was sent the request to the first
	// byte of its answer, or until the client had enough of waiting for it; 0: not
	// known, also when the request had been elsewhere before.
	FirstByte time.Duration
	// Output is how many tokens the answer had, as its enclave says, rounded up to a power of
	// two; 0: not known, also of an answer that was cut.
	Output int
	// PerToken is the time for each of so many tokens after the first byte; 0: not known, also
	// of an answer in one piece. It is within a factor of two, and comparable with that of
	// answers of the same Output. Chunks would be finer and say nothing: enclaves wait for
	// tokens to seal together, and longer where they are slower.
	PerToken time.Duration
}

var (
	headerModel = strings.ToLower(api.HeaderModel)
	headerSize  = strings.ToLower(api.HeaderSize)
)

// chunkBytes is the least that a chunk of a sealed answer has, padded (package seal).
const chunkBytes = 512

// minChunks is how many chunks an answer has at least that tells of the time for each
// token.
const minChunks = 8

// tellEnded has whoever wants to know hear of a request's last attempt.
func (p *Picker) tellEnded(entry *accesslogdatav3.HTTPAccessLogEntry, in *fleet.Instance, kind peers.Kind) {
	headers := entry.GetRequest().GetRequestHeaders()
	e := Ended{Instance: in, Model: headers[headerModel], Failed: kind == peers.Failed, Refused: engineOutcome(entry) == api.OutcomeRefused}
	if declared, err := size.Parse(headers[headerSize]); err == nil {
		e.Size = declared
	}
	common := entry.GetCommonProperties()
	sent, first, last := common.GetTimeToFirstUpstreamTxByte(), common.GetTimeToFirstUpstreamRxByte(), common.GetTimeToLastUpstreamRxByte()
	gaveUp := common.GetResponseFlags().GetDownstreamConnectionTermination()
	switch {
	case kind == peers.Ended && !gaveUp: // it says nothing of the instance
		return
	case common.GetUpstreamRequestAttemptCount() > 1 || sent == nil: // how long it has been elsewhere is not known
	case first != nil:
		e.FirstByte = max(first.AsDuration()-sent.AsDuration(), 0)
		if used, err := size.Parse(entry.GetResponse().GetResponseTrailers()[headerUsage]); err == nil {
			e.Output = used.Output
			e.PerToken = perToken(e.FirstByte, last.AsDuration()-first.AsDuration(), entry.GetResponse().GetResponseBodyBytes(), used.Output)
		}
	case gaveUp:
		e.FirstByte = max(common.GetDuration().AsDuration()-sent.AsDuration(), 0) // or more: it would have been later
	}
	p.ended(e)
}

// perToken is known of an answer that has gone on for a while after it began, and so
// was streamed: the same as package routing's Meter takes for that.
func perToken(first, after time.Duration, bytes uint64, tokens int) time.Duration {
	if bytes/chunkBytes < minChunks || after <= first/16 {
		return 0
	}
	return after / time.Duration(tokens)
}

// tellMoved has whoever wants to know hear of an attempt that was given up.
func (p *Picker) tellMoved(envoyID, from string) {
	in := p.index().get(from)
	request, known := p.book.Request(envoyID)
	if in == nil || !known {
		return
	}
	p.ended(Ended{Instance: in, Model: request.Model, Size: size.Buckets{Prompt: request.PromptTokens}, Failed: true})
}
