"""What a demonstration adds to an answer: places drawn, things cut out, pictures made.

`drawing.draw` shows the boxes, points, poses and masks of an answer, `masks.Masks` is Segment
Anything, `t2i.painter` a text-to-image pipeline by address or name.
"""
