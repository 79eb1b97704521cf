package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	accesslogdatav3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/mrgc/mrgc/internal/api"
)

// window is what requests in flight are averaged over.
const window = 100 * time.Millisecond

// arrival is one request.
type arrival struct {
	at, takes time.Duration
	router    uint32 // modulo the number of routers
}

// draw draws the arrivals that keep a scene's instances as busy as they should
// be, from the warm-up on.
func draw(random *rand.Rand, s scene, duration time.Duration) (all []arrival) {
	gap := s.takes.Seconds() / (s.inFlight * float64(s.instances))
	for at := 0.0; at < (s.warmUp() + duration).Seconds(); at += gap * random.ExpFloat64() {
		all = append(all, arrival{
			at:     time.Duration(at * float64(time.Second)),
			takes:  time.Duration(random.ExpFloat64() * float64(s.takes)),
			router: random.Uint32(),
		})
	}
	return all
}

// outcome is what one play showed.
type outcome struct {
	p50, p99  float64       // over the windows, of max over mean
	processor time.Duration // per request
	late      time.Duration // p99 of how late requests were asked for
}

// change is that a request has come to an instance, or gone.
type change struct {
	at       time.Duration
	instance int
	by       int
}

// player plays arrivals to a region.
type player struct {
	region     *region
	recipients string
	index      map[string]int // of instances by address
	began      time.Time
	logs       []*accessLog

	mu      sync.Mutex
	changes []change        // guarded by mu
	late    []time.Duration // guarded by mu
	failed  error           // guarded by mu: the first
}

// play has a region pick for all arrivals, and gives what came of it.
func play(ctx context.Context, s scene, routers int, share bool, arrivals []arrival) (out outcome, err error) {
	r, err := startRegion(ctx, s, routers, share)
	if err != nil {
		return out, err
	}
	p := &player{region: r, recipients: recipients(s.instances), index: map[string]int{}}
	for i := range s.instances {
		p.index[address(i).String()] = i
	}
	for _, conn := range r.conns {
		stream, err := accesslogv3.NewAccessLogServiceClient(conn).StreamAccessLogs(ctx)
		if err != nil {
			return out, err
		}
		p.logs = append(p.logs, &accessLog{stream: stream})
	}
	before := processorTime()
	err = p.play(ctx, arrivals)
	out.processor = (processorTime() - before) / time.Duration(len(arrivals))
	if stopErr := r.stop(); err == nil {
		err = stopErr
	}
	if err != nil {
		return out, err
	}
	spread := spreadOf(p.changes, s, arrivals[len(arrivals)-1].at)
	out.p50, out.p99 = quantile(spread, 0.5), quantile(spread, 0.99)
	slices.Sort(p.late)
	out.late = p.late[len(p.late)*99/100]
	return out, nil
}

func (p *player) play(ctx context.Context, arrivals []arrival) error {
	var requests sync.WaitGroup
	p.began = time.Now()
	for n, a := range arrivals {
		if wait := a.at - time.Since(p.began); wait > 0 {
			select {
			case <-time.After(wait):
			case <-ctx.Done():
			}
		}
		if ctx.Err() != nil {
			break
		}
		requests.Go(func() { p.request(ctx, n, a) })
	}
	requests.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return p.failed
}

// request is one: it is picked for, takes its time on the instance, and is
// logged.
func (p *player) request(ctx context.Context, n int, a arrival) {
	late := time.Since(p.began) - a.at
	router := int(a.router) % len(p.logs)
	id := fmt.Sprintf("%032x", n)
	to, err := p.pick(ctx, router, id)
	if err == nil {
		p.note(to, 1)
		time.Sleep(a.takes)
		p.note(to, -1)
		err = p.logs[router].add(ended(id, to))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.late = append(p.late, late)
	if err != nil && p.failed == nil {
		p.failed = err
	}
}

func (p *player) note(instance, by int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.changes = append(p.changes, change{time.Since(p.began), instance, by})
}

// pick asks a router as Envoy does, and gives the instance that it names first.
func (p *player) pick(ctx context.Context, router int, id string) (int, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // Envoy ends the stream, too, when it has its answer
	stream, err := extprocv3.NewExternalProcessorClient(p.region.conns[router]).Process(ctx)
	if err != nil {
		return 0, err
	}
	headers := &corev3.HeaderMap{}
	for _, h := range [][2]string{
		{"content-type", api.ContentTypeSealedRequest},
		{"authorization", "Bearer " + string(p.region.key.EdgeToken())},
		{"x-request-id", id},
		{api.HeaderModel, model},
		{api.HeaderTenant, p.region.key.Tenant()},
		{api.HeaderRequestID, id},
		{api.HeaderRecipients, p.recipients},
	} {
		headers.Headers = append(headers.Headers, &corev3.HeaderValue{Key: strings.ToLower(h[0]), RawValue: []byte(h[1])})
	}
	if err := stream.Send(&extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestHeaders{
		RequestHeaders: &extprocv3.HttpHeaders{Headers: headers, EndOfStream: true},
	}}); err != nil {
		return 0, err
	}
	answer, err := stream.Recv()
	if err != nil {
		return 0, err
	}
	if refused := answer.GetImmediateResponse(); refused != nil {
		return 0, fmt.Errorf("refused: %s", refused.GetBody())
	}
	pick := answer.GetDynamicMetadata().GetFields()["envoy.lb"].GetStructValue().GetFields()["x-gateway-destination-endpoint"].GetStringValue()
	first, _, _ := strings.Cut(pick, ",")
	to, ok := p.index[first]
	if !ok {
		return 0, fmt.Errorf("picked %q, which is no instance", pick)
	}
	return to, nil
}

func ended(id string, instance int) *accesslogdatav3.HTTPAccessLogEntry {
	at := address(instance)
	return &accesslogdatav3.HTTPAccessLogEntry{
		CommonProperties: &accesslogdatav3.AccessLogCommon{
			AccessLogType:         accesslogdatav3.AccessLogType_DownstreamEnd,
			UpstreamRemoteAddress: socket(at),
		},
		Request:  &accesslogdatav3.HTTPRequestProperties{RequestId: id},
		Response: &accesslogdatav3.HTTPResponseProperties{ResponseCode: wrapperspb.UInt32(200)},
	}
}

func socket(a netip.AddrPort) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: a.Addr().String(), PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(a.Port())},
	}}}
}

// accessLog is one Envoy's, to one router. Entries go at once, as package xds
// has it.
type accessLog struct {
	mu     sync.Mutex // a stream takes one message at a time
	stream accesslogv3.AccessLogService_StreamAccessLogsClient
}

func (l *accessLog) add(e *accesslogdatav3.HTTPAccessLogEntry) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stream.Send(&accesslogv3.StreamAccessLogsMessage{LogEntries: &accesslogv3.StreamAccessLogsMessage_HttpLogs{
		HttpLogs: &accesslogv3.StreamAccessLogsMessage_HTTPAccessLogEntries{LogEntry: []*accesslogdatav3.HTTPAccessLogEntry{e}},
	}})
}

// spreadOf gives for each window after the warm-up and up to an end the mean
// number of requests on the busiest instance, over that of all.
func spreadOf(changes []change, s scene, end time.Duration) (spread []float64) {
	slices.SortStableFunc(changes, func(a, b change) int { return int(a.at - b.at) })
	now := make([]int, s.instances)
	next := 0
	for from := time.Duration(0); from+window <= end; from += window {
		inFlight := make([]float64, s.instances) // request-seconds
		at := from
		advance := func(to time.Duration) {
			for i, n := range now {
				inFlight[i] += float64(n) * (to - at).Seconds()
			}
			at = to
		}
		for ; next < len(changes) && changes[next].at < from+window; next++ {
			advance(changes[next].at)
			now[changes[next].instance] += changes[next].by
		}
		advance(from + window)
		if from < s.warmUp() {
			continue
		}
		sum := 0.0
		for _, v := range inFlight {
			sum += v
		}
		spread = append(spread, slices.Max(inFlight)*float64(s.instances)/sum)
	}
	return spread
}

// processorTime is what this process has used so far.
func processorTime() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err) // of a pointer that is valid
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
