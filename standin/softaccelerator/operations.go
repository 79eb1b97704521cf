package softaccelerator

import (
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// What follows has the API's own names (API reference, version 2018-08-08).

type page struct {
	MaxResults *int
	NextToken  *string
}

type listAcceleratorsInput struct{ page }

type acceleratorInput struct {
	AcceleratorArn string
	page
}

type listenerInput struct {
	ListenerArn string
	page
}

type endpointGroupInput struct{ EndpointGroupArn string }

type updateEndpointGroupInput struct {
	EndpointGroupArn           string
	EndpointConfigurations     []endpointConfiguration // nil: they stay as they are
	TrafficDialPercentage      *float64
	HealthCheckPort            *int
	HealthCheckProtocol        string
	HealthCheckPath            *string
	HealthCheckIntervalSeconds *int
	ThresholdCount             *int
}

type endpointConfiguration struct {
	EndpointId                  string //nolint:revive // the API's name
	Weight                      *int
	ClientIPPreservationEnabled *bool // which makes no difference here
}

type acceleratorOutput struct {
	AcceleratorArn, Name, IpAddressType, Status string //nolint:revive // the API's names
	Enabled                                     bool
	CreatedTime, LastModifiedTime               float64 // seconds since 1970
}

type listenerOutput struct {
	ListenerArn, Protocol, ClientAffinity string
	PortRanges                            []portRange
}

type portRange struct{ FromPort, ToPort int }

type endpointGroupOutput struct {
	EndpointGroupArn, EndpointGroupRegion      string
	EndpointDescriptions                       []endpointDescription
	TrafficDialPercentage                      float64
	HealthCheckPort                            int
	HealthCheckProtocol, HealthCheckPath       string
	HealthCheckIntervalSeconds, ThresholdCount int
}

type endpointDescription struct {
	EndpointId  string //nolint:revive // the API's name
	Weight      int
	HealthState string
}

const (
	mostResults    = 100
	defaultResults = 10
	tokenPrefix    = "after-"
	listenerPort   = 443
)

// paged gives the part of a list that is asked for, and the token of the next.
func paged[T any](all []T, p page) (part []T, next string, refused *apiError) {
	limit, from := defaultResults, 0
	if p.MaxResults != nil {
		if limit = *p.MaxResults; limit < 1 || limit > mostResults {
			return nil, "", invalid("MaxResults must be within 1 and %d", mostResults)
		}
	}
	if p.NextToken != nil {
		text, err := base64.StdEncoding.DecodeString(*p.NextToken)
		number, ok := strings.CutPrefix(string(text), tokenPrefix)
		if from, _ = strconv.Atoi(number); err != nil || !ok || from < 1 || from >= len(all) {
			return nil, "", errorf("InvalidNextTokenException", "There isn't another item to return.")
		}
	}
	to := min(from+limit, len(all))
	if to < len(all) {
		next = base64.StdEncoding.EncodeToString([]byte(tokenPrefix + strconv.Itoa(to)))
	}
	return all[from:to], next, nil
}

// answer is a list, or one thing, under its name.
func answer(name string, value any, next string) map[string]any {
	out := map[string]any{name: value}
	if next != "" {
		out["NextToken"] = next
	}
	return out
}

func (s *Service) listAccelerators(in listAcceleratorsInput) (any, *apiError) {
	part, next, refused := paged([]acceleratorOutput{s.accelerator()}, in.page)
	return answer("Accelerators", part, next), refused
}

func (s *Service) describeAccelerator(in acceleratorInput) (any, *apiError) {
	if refused := isAccelerator(in.AcceleratorArn); refused != nil {
		return nil, refused
	}
	return answer("Accelerator", s.accelerator(), ""), nil
}

func (s *Service) listListeners(in acceleratorInput) (any, *apiError) {
	if refused := isAccelerator(in.AcceleratorArn); refused != nil {
		return nil, refused
	}
	part, next, refused := paged([]listenerOutput{listener()}, in.page)
	return answer("Listeners", part, next), refused
}

func (s *Service) describeListener(in listenerInput) (any, *apiError) {
	if refused := isListener(in.ListenerArn); refused != nil {
		return nil, refused
	}
	return answer("Listener", listener(), ""), nil
}

func (s *Service) listEndpointGroups(in listenerInput) (any, *apiError) {
	if refused := isListener(in.ListenerArn); refused != nil {
		return nil, refused
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []endpointGroupOutput
	for number := range s.groups {
		all = append(all, s.endpointGroup(number))
	}
	part, next, refused := paged(all, in.page)
	return answer("EndpointGroups", part, next), refused
}

func (s *Service) describeEndpointGroup(in endpointGroupInput) (any, *apiError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	number, refused := s.find(in.EndpointGroupArn)
	if refused != nil {
		return nil, refused
	}
	return answer("EndpointGroup", s.endpointGroup(number), ""), nil
}

// updateEndpointGroup changes what is given and leaves the rest.
func (s *Service) updateEndpointGroup(in updateEndpointGroupInput) (any, *apiError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	number, refused := s.find(in.EndpointGroupArn)
	if refused != nil {
		return nil, refused
	}
	g := &s.groups[number]
	to, refused := s.changed(g.configured, in)
	if refused != nil {
		return nil, refused
	}
	s.settle()
	now := s.config.Now()
	g.configured, s.modified = to, now
	s.pending = append(s.pending, change{at: now.Add(s.config.Deploy), group: number, to: to})
	s.log.Info("changed", "region", g.region, "dial_percent", to.dial)
	return answer("EndpointGroup", s.endpointGroup(number), ""), nil
}

// changed is a group's settings after an update.
func (s *Service) changed(set settings, in updateEndpointGroupInput) (settings, *apiError) {
	if dial := in.TrafficDialPercentage; dial != nil {
		if *dial < 0 || *dial > 100 {
			return set, invalid("traffic dial percentage must be within 0 and 100")
		}
		set.dial = *dial
	}
	if in.HealthCheckPort != nil && *in.HealthCheckPort == 0 {
		return set, invalid("health check port must be within 1 and 65535")
	}
	for _, given := range []struct{ value, into *int }{
		{in.HealthCheckPort, &set.check.Port},
		{in.HealthCheckIntervalSeconds, &set.check.IntervalSeconds},
		{in.ThresholdCount, &set.check.Threshold},
	} {
		if given.value != nil {
			*given.into = *given.value
		}
	}
	if in.HealthCheckProtocol != "" {
		set.check.Protocol = in.HealthCheckProtocol
	}
	if in.HealthCheckPath != nil {
		set.check.Path = *in.HealthCheckPath
	}
	if why := set.check.invalid(); why != "" {
		return set, invalid("%s", why)
	}
	if in.EndpointConfigurations == nil {
		return set, nil
	}
	set.endpoints = nil
	for _, e := range in.EndpointConfigurations {
		weight := defaultWeight
		if e.Weight != nil {
			weight = *e.Weight
		}
		if weight < 0 || weight > mostWeight {
			return set, invalid("weight must be within 0 and %d", mostWeight)
		}
		if s.address[e.EndpointId] == "" {
			return set, invalid("endpoint %s is not valid", e.EndpointId)
		}
		set.endpoints = append(set.endpoints, target{id: e.EndpointId, weight: weight})
	}
	return set, nil
}

func isAccelerator(arn string) *apiError {
	if arn != AcceleratorARN {
		return errorf("AcceleratorNotFoundException", "accelerator %q was not found", arn)
	}
	return nil
}

func isListener(arn string) *apiError {
	if arn != ListenerARN {
		return errorf("ListenerNotFoundException", "listener %q was not found", arn)
	}
	return nil
}

// GroupARN is the name of an endpoint group, by its number in [Config.Groups].
func GroupARN(number int) string {
	return fmt.Sprintf("%s/endpoint-group/%012x", ListenerARN, number+1)
}

func (s *Service) find(arn string) (number int, refused *apiError) {
	for number := range s.groups {
		if GroupARN(number) == arn {
			return number, nil
		}
	}
	return 0, errorf("EndpointGroupNotFoundException", "endpoint group %q was not found", arn)
}

func (s *Service) accelerator() acceleratorOutput {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settle()
	status := "DEPLOYED"
	if len(s.pending) > 0 {
		status = "IN_PROGRESS"
	}
	return acceleratorOutput{
		AcceleratorArn: AcceleratorARN, Name: "mrgc", IpAddressType: "IPV4", Status: status, Enabled: true,
		CreatedTime: seconds(s.created), LastModifiedTime: seconds(s.modified),
	}
}

func seconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

func listener() listenerOutput {
	return listenerOutput{ListenerArn: ListenerARN, Protocol: "TCP", ClientAffinity: "NONE", PortRanges: []portRange{{listenerPort, listenerPort}}}
}

// endpointGroup describes a group. It is called with mu held.
func (s *Service) endpointGroup(number int) endpointGroupOutput {
	g := &s.groups[number]
	set := g.configured
	out := endpointGroupOutput{
		EndpointGroupArn: GroupARN(number), EndpointGroupRegion: g.region, EndpointDescriptions: []endpointDescription{},
		TrafficDialPercentage: set.dial, HealthCheckPort: set.check.Port, HealthCheckProtocol: set.check.Protocol,
		HealthCheckPath: set.check.Path, HealthCheckIntervalSeconds: set.check.IntervalSeconds, ThresholdCount: set.check.Threshold,
	}
	if out.HealthCheckPort == 0 {
		out.HealthCheckPort = listenerPort
	}
	for _, e := range set.endpoints {
		state := stateInitial
		if is, known := g.health[e.id]; known {
			state = is.state
		}
		out.EndpointDescriptions = append(out.EndpointDescriptions, endpointDescription{EndpointId: e.id, Weight: e.weight, HealthState: state})
	}
	return out
}
