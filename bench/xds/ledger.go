package main

import (
	"sync/atomic"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
)

// answer is an acknowledgement or a rejection, as the server receives it.
type answer struct {
	client   int64
	typeURL  string
	versions map[string]string // of the response that it answers
	refused  bool
	at       time.Time
}

// ledger writes down what passes between a server and its clients, whichever
// server that is.
type ledger struct {
	answers chan answer
	clients atomic.Int64
	// resent counts resources that were sent to a client in a version that it
	// had rejected.
	resent atomic.Int64
}

func newLedger() *ledger { return &ledger{answers: make(chan answer, 1<<16)} }

func (l *ledger) intercept(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	return handler(srv, &watched{
		ServerStream: stream, ledger: l, client: l.clients.Add(1),
		sent: make(chan *discoveryv3.DeltaDiscoveryResponse, 64), open: map[string]map[string]string{}, refused: map[[3]string]bool{},
	})
}

// watched is a stream. What is sent goes through a channel to whoever receives,
// because the two are different goroutines.
type watched struct {
	grpc.ServerStream
	ledger *ledger
	client int64

	sent    chan *discoveryv3.DeltaDiscoveryResponse
	open    map[string]map[string]string // of the receiver: nonce → versions
	refused map[[3]string]bool           // of the receiver: type, name, version
}

func (w *watched) SendMsg(m any) error {
	if resp, ok := m.(*discoveryv3.DeltaDiscoveryResponse); ok {
		w.sent <- resp
	}
	return w.ServerStream.SendMsg(m)
}

func (w *watched) RecvMsg(m any) error {
	if err := w.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	req, ok := m.(*discoveryv3.DeltaDiscoveryRequest)
	if !ok || req.GetResponseNonce() == "" {
		return nil
	}
	at := time.Now()
	for len(w.sent) > 0 {
		w.note(<-w.sent)
	}
	a := answer{client: w.client, typeURL: req.GetTypeUrl(), versions: w.open[req.GetResponseNonce()], refused: req.GetErrorDetail() != nil, at: at}
	delete(w.open, req.GetResponseNonce())
	if a.refused {
		for name, version := range a.versions {
			w.refused[[3]string{a.typeURL, name, version}] = true
		}
	}
	w.ledger.answers <- a
	return nil
}

func (w *watched) note(resp *discoveryv3.DeltaDiscoveryResponse) {
	versions := map[string]string{}
	for _, r := range resp.GetResources() {
		versions[r.GetName()] = r.GetVersion()
		if w.refused[[3]string{resp.GetTypeUrl(), r.GetName(), r.GetVersion()}] {
			w.ledger.resent.Add(1)
		}
	}
	w.open[resp.GetNonce()] = versions
}
