"""Which demuxers and decoders of FFmpeg a file may reach: those of common videos, not all several hundred of them."""

from __future__ import annotations


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Playlists (hls, dash, concat) are left out: they would make a local file open other files and URLs.
VIDEO_FORMATS = _names(
    "3g2 3gp asf av1 avi dv flv gif h263 h264 hevc ivf live_flv m4a m4v matroska mj2 mjpeg mov mp4 mpeg mpegts "
    "mpegtsraw mpegvideo mxf nut obu ogg rm vc1 webm wtv yuv4mpegpipe"
)
SOUND_FORMATS = _names("aac flac mp3 wav")
"""Opened to be able to say that there is no video."""
FORMATS = VIDEO_FORMATS | SOUND_FORMATS
"""FFmpeg's names of the containers that are opened; Limits(formats=FORMATS | {...}) adds to them."""

VIDEO_CODECS = _names(
    "apv av1 libdav1d libaom-av1 cfhd cinepak dnxhd dvvideo ffv1 ffvhuff flv gif h261 h263 h263i h263p h264 hevc "
    "huffyuv indeo3 indeo4 indeo5 jpeg2000 libopenjpeg magicyuv mjpeg mpeg1video mpeg2video mpegvideo mpeg4 msmpeg4 "
    "msmpeg4v1 msmpeg4v2 msvideo1 png prores qtrle rawvideo rpza rv10 rv20 rv30 rv40 svq1 svq3 theora utvideo v210 vc1 "
    "vp3 vp5 vp6 vp6a vp6f vp8 libvpx vp9 libvpx-vp9 vvc wmv1 wmv2 wmv3 wrapped_avframe yuv4"
)
SOUND_CODECS = _names(
    "aac aac_fixed aac_latm ac3 alac amrnb amrwb dca eac3 flac mp1float mp2 mp2float mp3 mp3float opus libopus truehd "
    "vorbis libvorbis wmav1 wmav2 wmapro pcm_alaw pcm_f32be pcm_f32le pcm_mulaw pcm_s16be pcm_s16le pcm_s24be "
    "pcm_s24le pcm_s32be pcm_s32le pcm_u8 adpcm_ima_wav adpcm_ms"
)
CODECS = VIDEO_CODECS | SOUND_CODECS
"""FFmpeg's names of the decoders that are used (sound only while FFmpeg looks into the file)."""
