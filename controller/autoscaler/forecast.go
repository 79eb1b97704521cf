package autoscaler

import (
	"math"
	"slices"
	"time"
)

// Forecast is what is known of a region's demand over time, in requests/s. The zero
// value knows nothing, and foresees what is.
type Forecast struct {
	// Day is the mean of each five minutes of the day (UTC), of the days before, and
	// Days how many. The newest day counts for half.
	Day  []float64
	Days []float64
	// Recent are the last minutes' means, the oldest first.
	Recent []float64
	// The minute and the five minutes that are being filled.
	Minute, Bin mean
	// Promised is what was foreseen for the minutes to come, and Error the root of the
	// mean of the squares by which such forecasts were too low, of the demand.
	Promised []float64
	Error    float64
	// Peak is the most that was needed since less is.
	Peak int
}

// mean gathers what falls into one interval.
type mean struct {
	Of  int64 // intervals since 1970
	Sum float64
	N   float64
}

const (
	binsOfDay   = 24 * 12
	recentCount = 10
	// margin is how many of its errors a forecast is raised by, and errorMemory the
	// minutes over which they are remembered.
	margin      = 1.0
	errorMemory = 120.0
	maxRise     = 3.0 // within a lead, as far as the days before are believed
)

func (f Forecast) clone() Forecast {
	f.Day, f.Days, f.Recent, f.Promised = slices.Clone(f.Day), slices.Clone(f.Days), slices.Clone(f.Recent), slices.Clone(f.Promised)
	return f
}

// note takes the present demand.
func (f *Forecast) note(demand float64, now time.Time, lead time.Duration) {
	if full, ok := f.Minute.add(now.Unix()/60, demand); ok {
		f.Recent = append(f.Recent, full)
		f.Recent = f.Recent[max(len(f.Recent)-recentCount, 0):]
		if len(f.Promised) > 0 && full > 0 {
			low := max(full-f.Promised[0], 0) / full
			f.Error = math.Sqrt((f.Error*f.Error*(errorMemory-1) + low*low) / errorMemory)
			f.Promised = f.Promised[1:]
		}
		for len(f.Promised) < int(lead.Minutes()) {
			f.Promised = append(f.Promised, f.at(full, now, time.Duration(len(f.Promised)+1)*time.Minute))
		}
	}
	bin := f.Bin.Of
	if full, ok := f.Bin.add(now.Unix()/300, demand); ok {
		if f.Day == nil {
			f.Day, f.Days = make([]float64, binsOfDay), make([]float64, binsOfDay)
		}
		i := bin % binsOfDay
		f.Days[i]++
		f.Day[i] += (full - f.Day[i]) * max(1/f.Days[i], 0.5)
	}
}

// add gives an interval's mean when the next begins.
func (m *mean) add(of int64, v float64) (full float64, ok bool) {
	if of != m.Of {
		if m.N > 0 {
			full, ok = m.Sum/m.N, true
		}
		*m = mean{Of: of}
	}
	m.Sum, m.N = m.Sum+v, m.N+1
	return full, ok
}

// ahead is the most that is foreseen from now until the lead is over, with the margin.
func (f *Forecast) ahead(demand float64, now time.Time, lead time.Duration) float64 {
	most := f.level(demand)
	for t := time.Minute; t <= lead; t += time.Minute {
		most = max(most, f.at(demand, now, t))
	}
	return most * (1 + margin*f.Error)
}

// level is the demand of now, less its jitter: the mean of the last two minutes.
func (f *Forecast) level(demand float64) float64 {
	if len(f.Recent) < 2 {
		return demand
	}
	return (f.Recent[len(f.Recent)-1] + f.Recent[len(f.Recent)-2]) / 2
}

// at foresees the demand at a time to come: the level, times how much the days before
// rose from the level's time to that, or, where they are not known, with the trend.
func (f *Forecast) at(demand float64, now time.Time, after time.Duration) float64 {
	level, since := f.level(demand), now
	if len(f.Recent) >= 2 {
		since = now.Truncate(time.Minute).Add(-time.Minute) // the middle of the two minutes
	}
	if from, to := f.usual(since), f.usual(now.Add(after)); from > 0 && to > 0 {
		return level * min(max(to/from, 1/maxRise), maxRise)
	}
	return max(level+f.slope()*now.Add(after).Sub(since).Minutes(), 0)
}

// usual is the days' mean at a time of the day, between the middles of five minutes; 0:
// not known.
func (f *Forecast) usual(at time.Time) float64 {
	if f.Day == nil {
		return 0
	}
	position := float64(at.Unix())/300 - 0.5
	i := int64(math.Floor(position))
	a, b := i%binsOfDay, (i+1)%binsOfDay
	if f.Days[a] == 0 || f.Days[b] == 0 {
		return 0
	}
	share := position - float64(i)
	return f.Day[a]*(1-share) + f.Day[b]*share
}

// slope is the least squares' slope of the recent minutes, per minute.
func (f *Forecast) slope() float64 {
	n := float64(len(f.Recent))
	if n < 3 {
		return 0
	}
	var sumY, sumXY float64
	for i, y := range f.Recent {
		x := float64(i) - (n-1)/2
		sumY += y
		sumXY += x * y
	}
	return sumXY / (n * (n*n - 1) / 12)
}

// peak remembers the most that was needed since a moment.
func (f *Forecast) peak(n int, begins bool) {
	if begins {
		f.Peak = 0
	}
	f.Peak = max(f.Peak, n)
}
